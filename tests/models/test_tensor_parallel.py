"""Two processes over gloo compute what one does: heads, feed-forward and vocabulary cut, odd sizes padded or copied."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.checkpoints import FAMILY, make
from tests.models.driver import Driver
from tests.models.tp_rank import PROMPTS

pytestmark = pytest.mark.multi

CHECKPOINTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in FAMILY},
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "head-layer-norms": ("cohere", {"use_qk_norm": True}),
    "woven": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "one-kv-head": ("qwen2", {"num_key_value_heads": 1}),
    "fused-one-kv-head": ("phi3", {"num_key_value_heads": 1}),
    "wide-norms-one-kv-head": ("olmo2", {"num_key_value_heads": 1}),
    "neighbours-one-kv-head": ("glm", {"num_key_value_heads": 1}),
}


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    paths = [make(family, tmp_path / name, **changes) for name, (family, changes) in CHECKPOINTS.items()]
    command = [sys.executable, "-m", "tests.models.tp_rank"]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path), *map(str, paths)], cwd=Path(__file__).parents[2])
        for rank in range(2)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for path in paths:
        want = Driver(path, 4, ["torch_native"]).generate(PROMPTS, 5)
        for result in results:
            for (tokens, logits), sequence in zip(result[path.name], want, strict=True):
                assert tokens == sequence.tokens, path.name
                assert logits.shape[1] == 97, "padding of the vocabulary is cut off"
                assert (logits - sequence.all_logits()).abs().max() < 1e-4, path.name
