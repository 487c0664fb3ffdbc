"""Tiny random checkpoints that are pooled, written by transformers, with the small tokenizer of words."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification

from tests.models.checkpoints import _write_tokenizer
from tests.pooling.encoders import BASE, ENCODERS

KINDS = {
    "bare": AutoModel,
    "sequence": AutoModelForSequenceClassification,
    "token": AutoModelForTokenClassification,
}


def make(model_type: str, folder: Path, kind: str = "bare", labels: int = 3, **overrides: Any) -> Path:
    """A random checkpoint of `model_type` with a head of `kind`; `overrides` are fields of its config."""
    config = AutoConfig.for_model(
        model_type, **{**BASE, **ENCODERS.get(model_type, {}), "num_labels": labels, **overrides}
    )
    torch.manual_seed(5)
    model = KINDS[kind].from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    _write_tokenizer(folder, config.vocab_size)
    return folder


def with_modules(folder: Path, mode: str, normalize: bool = True, prompts: dict[str, str] | None = None) -> Path:
    """The files of sentence-transformers beside a checkpoint."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] if normalize else [])]
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{mode}": True}))
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts or {}}))
    return folder
