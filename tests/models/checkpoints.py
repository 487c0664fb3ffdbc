"""Tiny random checkpoints, written by transformers in float32 and in several shards, with a small tokenizer."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoConfig, AutoModelForCausalLM

from tests.models.families import BASE, FAMILY


def make(model_type: str, folder: Path, **overrides: Any) -> Path:
    """A random checkpoint of `model_type` in `folder`; `overrides` are fields of its config. Returns `folder`."""
    fields = {**BASE, **FAMILY[model_type], **overrides}
    given = {name: value for name, value in fields.items() if value is not ...}
    config = AutoConfig.for_model(model_type, **given)
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # transformers starts norms at 1 (or 0) and biases at 0, where a loader's mistake would not show.
            if parameter.dim() == 1 or name.endswith("_bias"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.add_(torch.randn_like(buffer) * 0.2)
    model.save_pretrained(folder, max_shard_size="40KB")
    _write_tokenizer(folder, config.vocab_size)
    return folder


def _write_tokenizer(folder: Path, size: int) -> None:
    """A tokenizer of whole words: `<pad> <s> </s> w3 w4 ...`, and no chat template."""
    special = ["<pad>", "<s>", "</s>"]
    words = {word: i for i, word in enumerate(special + [f"w{i}" for i in range(len(special), size)])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
