"""Encoders as their makers publish them: older names of fields and tensors, heads that nobody asks for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from quire.base.errors import CheckpointError
from quire.checkpoint.read import read_facts
from tests.models.driver import Driver
from tests.pooling.checkpoints import make
from tests.pooling.judge import judged

pytestmark = pytest.mark.torch

TEXTS = [[5, 9, 11, 3, 96, 17, 40], [60], list(range(3, 40))]


def rewrite(path: Path, config: dict[str, Any], name: Callable[[str], str], more: dict[str, Tensor]) -> None:
    """Another config and other names of tensors."""
    (path / "config.json").write_text(json.dumps(config))
    file = path / "model.safetensors"
    save_file({name(old): tensor for old, tensor in load_file(file).items()} | more, file)


def check(path: Path, judge: Path) -> None:
    for found, text in zip(Driver(path, 4).read(TEXTS), TEXTS, strict=True):
        assert (found - judged(judge, text)).abs().max() < 1e-4


def test_bert_of_2018(tmp_path: Path) -> None:
    path, judge = (make("bert", tmp_path / name) for name in ("published", "judge"))

    def old(name: str) -> str:
        return "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    config = json.loads((path / "config.json").read_text())
    more = {
        "cls.predictions.bias": torch.ones(97),
        "cls.seq_relationship.weight": torch.ones(2, 48),
        "bert.embeddings.position_ids": torch.arange(66)[None],
    }
    rewrite(path, {**config, "architectures": ["BertForMaskedLM"], "gradient_checkpointing": False}, old, more)
    check(path, judge)


def test_nomic_by_names_of_gpt2(tmp_path: Path) -> None:
    path, judge = (make("nomic_bert", tmp_path / name) for name in ("published", "judge"))
    config = {
        "model_type": "nomic_bert",
        "architectures": ["NomicBertModel"],
        "auto_map": {"AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"},
        "n_embd": 48,
        "n_head": 4,
        "n_layer": 3,
        "n_inner": 56,
        "n_positions": 128,
        "max_trained_positions": 66,
        "activation_function": "swiglu",
        "causal": False,
        "layer_norm_epsilon": 1e-12,
        "prenorm": False,
        "rotary_emb_base": 1000,
        "rotary_emb_fraction": 1.0,
        "rotary_scaling_factor": None,
        "type_vocab_size": 2,
        "vocab_size": 97,
        "torch_dtype": "float32",
    }
    rewrite(path, config, lambda name: name.removeprefix("nomic_bert."), {})
    assert read_facts("x", path).context_len == 66
    check(path, judge)


def test_gte_under_its_first_name(tmp_path: Path) -> None:
    """Its rope is transformers' linear one with 8 times the base and wavelengths 8 ** (2 / 12) times as long."""
    rope = {"rope_type": "linear", "rope_theta": 20000.0 * 8, "factor": 8 ** (2 / 12)}
    path, judge = (make("gte", tmp_path / name, rope_parameters=rope) for name in ("published", "judge"))
    config = json.loads((path / "config.json").read_text())
    del config["rope_parameters"]
    config |= {"model_type": "new", "architectures": ["NewModel", "NewForTokenClassification"], "pack_qkv": True}
    config |= {"rope_theta": 20000, "rope_scaling": {"type": "ntk", "factor": 8.0}, "position_embedding_type": "rope"}
    more = {"classifier.weight": torch.ones(1, 48), "classifier.bias": torch.ones(1)}
    rewrite(path, config, lambda name: "new." + name.removeprefix("gte."), more)
    check(path, judge)


def test_roberta_counts_from_token_1_unless_told(tmp_path: Path) -> None:
    path, judge = (make("roberta", tmp_path / name, pad_token_id=1) for name in ("published", "judge"))
    config = json.loads((path / "config.json").read_text())
    del config["pad_token_id"]
    rewrite(path, config, str, {})
    check(path, judge)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"architectures": 5}, "architectures"),
        ({"id2label": {"first": "x"}}, "they must be numbers"),
        ({"id2label": ["x"]}, "id2label"),
        ({"num_labels": 0, "id2label": None}, "num_labels"),
        ({"matryoshka_dimensions": [0]}, "matryoshka_dimensions"),
        ({"pad_token_id": "x"}, "pad_token_id is 'x'"),
        ({"pad_token_id": 70}, "pad_token_id takes 71"),
    ],
)
def test_what_is_damaged_is_named(fields: dict[str, Any], says: str, tmp_path: Path) -> None:
    config = {"model_type": "roberta", "vocab_size": 97, "max_position_embeddings": 66, "hidden_size": 48}
    head = {"architectures": ["RobertaForSequenceClassification"]}
    (tmp_path / "config.json").write_text(json.dumps({**config, **head, **fields}))
    with pytest.raises(CheckpointError, match=says):
        read_facts("x", tmp_path)


def test_a_length_that_is_none_is_named(tmp_path: Path) -> None:
    path = make("bert", tmp_path)
    (path / "sentence_roberta_config.json").write_text('{"max_seq_length": "long"}')
    with pytest.raises(CheckpointError, match=r"sentence_roberta_config.json.*max_seq_length"):
        read_facts("x", path)
