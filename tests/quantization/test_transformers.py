"""Models without a file of ours are quantized like all others: from checkpoints, while they load, over two ranks."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.models.checkpoints import make
from tests.models.driver import Driver
from tests.quantization.checkpoints import PROMPTS, SIZES, compare, inner, write

pytestmark = pytest.mark.torch


def alike(first: Driver, second: Driver) -> None:
    for one, other in zip(first.generate(PROMPTS, 6), second.generate(PROMPTS, 6), strict=True):
        assert one.tokens == other.tokens
        assert (one.all_logits() - other.all_logits()).abs().max() < 1e-4


def by_rows(module: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor] | None:
    if not inner(module):
        return None
    scales = weight.abs().amax(1, keepdim=True) / 448
    codes = (weight / scales).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": scales}, codes.float() * scales


def test_a_quantized_checkpoint_has_its_values(tmp_path: Path) -> None:
    scheme = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
    config = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": scheme}},
        "ignore": ["lm_head"],
    }
    quantized, plain, values = write(tmp_path, config, by_rows)
    ran = Driver(quantized, 4, impl="transformers")
    assert compare(ran, values) == len(values)
    alike(ran, Driver(plain, 4))


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_quantizing_while_loading_is_the_same_for_both(family: str, kind: str, tmp_path: Path) -> None:
    path = make(family, tmp_path, **SIZES)
    ran, want = (Driver(path, 4, quantization=kind, impl=impl) for impl in ("transformers", "quire"))
    assert compare(ran, {})
    alike(ran, want)
