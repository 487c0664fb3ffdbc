"""Scales of keys and values that checkpoints bring: found in every place, used by pages of 8 bits."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

import quire
from quire.base.errors import CheckpointError
from quire.layers.build import Build
from quire.layers.cache_scales import PLACES, cache_scales
from quire.parallel.mesh import Mesh
from quire.quantization.checkpoint import Quantized
from tests.quantization.checkpoints import Writer, write
from tests.quantization.test_fp8 import per_tensor

pytestmark = pytest.mark.torch


@dataclass
class Tensors:
    """A checkpoint of scalars."""

    entries: dict[str, float]
    asked: list[str] = field(default_factory=list)

    def read(self, name: str, rows: object = None, columns: object = None) -> Tensor:
        self.asked.append(name)
        return torch.tensor(self.entries[name])


def build(tensors: dict[str, float], kv: torch.dtype | None) -> Build:
    quantized = Quantized.__new__(Quantized)
    quantized.source = Tensors(tensors)  # type: ignore[assignment]
    return Build(
        Mesh(), torch.float32, torch.device("cpu"), checkpoint=quantized, kv_dtype=kv, path="model.layers.0.self_attn"
    )


@pytest.mark.parametrize("place", PLACES)
def test_scales_are_found_wherever_they_are(place: str) -> None:
    names = {f"model.layers.0.self_attn.{place.format(kind=kind)}": value for kind, value in (("k", 0.5), ("v", 0.25))}
    want = (0.25, 0.25) if place == "kv_scale" else (0.5, 0.25)
    assert cache_scales(build(names, torch.float8_e4m3fn)) == want
    assert cache_scales(build(names, None)) == (1.0, 1.0), "wide pages need none"


def test_a_scale_must_be_above_zero() -> None:
    for value in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(CheckpointError, match=r"layers.0.self_attn.k_scale is .*; a scale must be above 0"):
            cache_scales(build({"model.layers.0.self_attn.k_scale": value}, torch.float8_e4m3fn))


def logprobs(folder: Path, **settings: object) -> list[float]:
    with quire.LLM(str(folder), max_model_len=64, device="cpu", log_level="error", **settings) as llm:
        params = quire.SamplingParams(max_tokens=4, temperature=0.0, logprobs=0)
        (output,) = llm.generate([{"prompt_token_ids": list(range(5, 40))}], params, use_tqdm=False)
        found = output.outputs[0]
        return [entry[token].logprob for token, entry in zip(found.token_ids, found.logprobs, strict=True)]


def test_scales_undo_what_keys_are_multiplied_with(tmp_path: Path) -> None:
    def enlarged(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        # Keys of thousands, which E4M3 cannot hold, and queries that make up for it.
        large = {name: t * 4096 for name, t in tensors.items() if name.endswith("k_proj.weight")}
        small = {name: t / 4096 for name, t in tensors.items() if name.endswith("q_proj.weight")}
        return {**tensors, **large, **small}

    def with_scale(scale: float) -> Writer:
        def writer(module: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor] | None:
            made = per_tensor(module, weight)
            if made is not None and module.endswith("k_proj"):
                made[0]["k_scale"] = torch.tensor(scale)
            return made

        return writer

    config = {"quant_method": "fp8", "activation_scheme": "static"}
    small, _, _ = write(tmp_path / "small", config, with_scale(1 / 64))
    large, _, _ = write(tmp_path / "large", config, with_scale(64.0), change=enlarged)
    without, _, _ = write(tmp_path / "without", config, per_tensor, change=enlarged)
    want, same, other = (torch.tensor(logprobs(folder, kv_cache_dtype="fp8")) for folder in (small, large, without))
    # What is stored is the same to the bit, since all factors are powers of two.
    assert (same - want).abs().max() < 1e-4
    assert (other - want).abs().max() > 0.1
