"""Families with recurrent state against transformers, as in `test_transformers.py`, and with states that two share."""

import json
from pathlib import Path
from typing import Any

import pytest

from quire.base.errors import CheckpointError
from tests.models.checkpoints import make
from tests.models.driver import Driver
from tests.models.test_moe_families import Case, compare

pytestmark = pytest.mark.torch

ROPE: dict[str, Any] = {"position_embedding_type": "rope"}
CASES = [
    Case("qwen3_next", "qwen3_next"),
    Case("qwen3_next one head a key", "qwen3_next", {"linear_num_key_heads": 4, "norm_topk_prob": False}),
    Case("qwen3_5", "qwen3_5_text"),
    Case("qwen3_5 tied", "qwen3_5_text", {"tie_word_embeddings": True, "attention_bias": True}),
    Case("qwen3_5_moe", "qwen3_5_moe_text"),
    Case("mamba2", "mamba2"),
    Case("mamba2 biases", "mamba2", {"use_bias": True, "use_conv_bias": False, "n_groups": 1}),
    Case("mamba2 bounds", "mamba2", {"time_step_limit": (0.2, 0.9), "tie_word_embeddings": True, "conv_kernel": 3}),
    Case("granitemoehybrid", "granitemoehybrid"),
    Case("granitemoehybrid dense rope", "granitemoehybrid", {"num_local_experts": 0, **ROPE}),
    Case("granitemoehybrid groups", "granitemoehybrid", {"mamba_n_groups": 4, "mamba_proj_bias": True}),
    Case("nemotron_h", "nemotron_h"),
    Case("nemotron_h one group", "nemotron_h", {"n_group": 1, "topk_group": 1, "norm_topk_prob": False}),
    Case("nemotron_h biases", "nemotron_h", {"mlp_bias": True, "use_bias": True, "n_groups": 1}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_logits_and_greedy_tokens_are_those_of_transformers(case: Case, tmp_path: Path) -> None:
    compare(case, tmp_path)


@pytest.mark.parametrize(
    ("family", "listed", "said"),
    [
        ("qwen3_next", "layer_types", {"full_attention_interval": 2}),
        ("nemotron_h", "layers_block_type", {"hybrid_override_pattern": "M-*EM"}),
    ],
)
def test_older_configs_say_otherwise_what_layers_are(
    family: str, listed: str, said: dict[str, Any], tmp_path: Path
) -> None:
    path = make(family, tmp_path)
    want = Driver(path, 4).generate([[5, 6, 7], [8, 9], [10, 11, 12, 13]], 4)
    file = path / "config.json"
    config = json.loads(file.read_text())
    del config[listed]
    file.write_text(json.dumps(config | said))
    got = Driver(path, 4).generate([[5, 6, 7], [8, 9], [10, 11, 12, 13]], 4)
    assert [sequence.tokens for sequence in got] == [sequence.tokens for sequence in want]


def test_layers_of_an_unknown_kind_are_named(tmp_path: Path) -> None:
    file = make("nemotron_h", tmp_path) / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"layers_block_type": ["linear_attention", "rwkv"]}))
    with pytest.raises(CheckpointError, match="layer 1 of nemotron_h is of kind 'rwkv'"):
        Driver(tmp_path, 4)
