"""Two processes over gloo compute what one does: heads, feed-forward and vocabulary cut, odd sizes padded or copied."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from quire.parallel.mesh import Mesh
from tests.models.checkpoints import FAMILY, make
from tests.models.others import OTHER_DECODERS, OTHER_ENCODERS
from tests.models.tp_rank import ADOPTED, run
from tests.pooling import checkpoints as pooled

pytestmark = pytest.mark.multi

CHECKPOINTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in FAMILY},
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "head-layer-norms": ("cohere", {"use_qk_norm": True}),
    "woven": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "narrow-embeddings": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 20}),
    "one-kv-head": ("qwen2", {"num_key_value_heads": 1}),
    "fused-one-kv-head": ("phi3", {"num_key_value_heads": 1}),
    "wide-norms-one-kv-head": ("olmo2", {"num_key_value_heads": 1}),
    "neighbours-one-kv-head": ("glm", {"num_key_value_heads": 1}),
}
ENCODERS = ["bert", "gte", "modernbert"]
"""Of our own; the others are one of these under another name."""
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, fields) for name, fields in OTHER_DECODERS.items()},
    # Sinks; tensors of all experts in one; more ranks than KV heads.
    ADOPTED: ("gpt_oss", FAMILY["gpt_oss"]),
    f"{ADOPTED}-one-kv-head": ("llama", {"num_key_value_heads": 1}),
}
LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
EACH_WAY = {
    *("arcee", "bitnet", "dots1", "ernie4_5_moe", "gemma3n_text", "gpt_bigcode", "granitemoe", "longcat_flash"),
    *("minicpm3", "phimoe", "gptj", ADOPTED, f"{ADOPTED}-one-kv-head", "distilbert", "deberta-v2", "xmod"),
}
"""One or two for each way in which ranks share a model of transformers; all of them in `make test-long`."""


@pytest.mark.timeout(7200 if LONG else 600)
def test_two_ranks_equal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All in one start of ranks: each imports for seconds before it computes anything."""
    paths = [*ours(tmp_path), *of_transformers(tmp_path, monkeypatch)]
    results = results_of_two(paths, tmp_path)
    for path in paths:
        want = run(path, Mesh())
        assert len(results[0][path.name]) == len(want)
        for result in results:
            for (tokens, values), (same, expected) in zip(result[path.name], want, strict=False):
                assert tokens == same, path.name
                assert values.shape == expected.shape, "padding of the vocabulary is cut off"
                assert (values - expected).abs().max() < 1e-4, path.name


def ours(folder: Path) -> Iterator[Path]:
    """Checkpoints that have a file of ours."""
    for name, (family, changes) in CHECKPOINTS.items():
        yield make(family, folder / name, **changes)
    for name in ENCODERS:
        yield pooled.make(name, folder / name, "sequence")


def of_transformers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Checkpoints that run through transformers."""
    others = {name: value for name, value in OTHERS.items() if LONG or name in EACH_WAY}
    encoders = {name: value for name, value in OTHER_ENCODERS.items() if LONG or name in EACH_WAY}
    assert LONG or len(others) + len(encoders) == len(EACH_WAY)
    for name, (family, fields) in others.items():
        monkeypatch.setitem(FAMILY, family, fields)
        yield make(family, folder / name)
    for name, fields in encoders.items():
        monkeypatch.setitem(pooled.ENCODERS, name, fields)
        yield pooled.make(name, folder / name, "sequence")


def results_of_two(paths: list[Path], folder: Path) -> list[Any]:
    """What each of two ranks made of all checkpoints."""
    command = [sys.executable, "-m", "tests.models.tp_rank"]
    ranks = [
        subprocess.Popen([*command, str(rank), str(folder), *map(str, paths)], cwd=Path(__file__).parents[2])
        for rank in range(2)
    ]
    try:
        assert [rank.wait() for rank in ranks] == [0, 0]
    finally:
        # One may wait for the other for ever, and the test's own time may be over.
        for rank in ranks:
            rank.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]
