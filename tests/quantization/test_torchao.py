"""torchao's checkpoints: by a writer that follows the published layout, and by torchao itself where it is installed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from quire.base.errors import CheckpointError
from tests.quantization.checkpoints import check, inner, write

pytestmark = pytest.mark.torch
CONFIG = {"quant_method": "torchao", "quant_type": {"default": {}}}
Made = tuple[dict[str, Tensor], Tensor] | None


def flattened(codes: Tensor, scale: Tensor, zeros: Tensor | None, group: int) -> tuple[dict[str, Tensor], Tensor]:
    """Tensors as torchao calls them, and their values: (code - zero) * scale."""
    tensors = {"_weight_qdata": codes, "_weight_scale": scale}
    wide = codes.float().view(len(codes), -1, group)
    if zeros is not None:
        tensors["_weight_zero_point"] = zeros
        wide = wide - zeros.float()[:, :, None]
    return tensors, (wide * scale.float()[:, :, None]).view(codes.shape)


def fp8(module: str, weight: Tensor) -> Made:
    if not inner(module):
        return None
    scale = weight.abs().amax(1, keepdim=True) / 448
    return flattened((weight / scale).to(torch.float8_e4m3fn), scale, None, weight.shape[1])


def int8(module: str, weight: Tensor) -> Made:
    if not inner(module):
        return None
    scale = weight.abs().amax(1, keepdim=True) / 127
    codes = (weight / scale).round().to(torch.int8)
    return flattened(codes, scale, torch.zeros_like(scale).to(torch.int8), weight.shape[1])


def int4_unpacked(module: str, weight: Tensor) -> Made:
    if not inner(module):
        return None
    parts = weight.view(len(weight), -1, 32)
    low, high = parts.amin(2), parts.amax(2)
    scale = ((high - low) / 15).clamp(min=1e-6)
    zeros = (-8 - (low / scale).round()).clamp(-8, 7).to(torch.int8)
    codes = ((parts / scale[:, :, None]).round() + zeros.float()[:, :, None]).clamp(-8, 7).to(torch.int8)
    return flattened(codes.view(weight.shape), scale, zeros, 32)


def int4_packed(module: str, weight: Tensor) -> Made:
    """Int4Tensor: signed codes by twos in bytes, scales and floating points of groups as columns."""
    if not inner(module):
        return None
    parts = weight.view(len(weight), -1, 32)
    low, high = parts.amin(2), parts.amax(2)
    scale = ((high - low) / 15).clamp(min=1e-6).bfloat16()
    points = (low + 8 * scale.float()).bfloat16()
    codes = ((parts - points.float()[:, :, None]) / scale.float()[:, :, None]).round().clamp(-8, 7)
    pairs = codes.to(torch.int8).view(len(weight), -1, 2)
    packed = (pairs[:, :, 0] & 15) | (pairs[:, :, 1] << 4)
    values = codes * scale.float()[:, :, None] + points.float()[:, :, None]
    tensors = {"_weight_qdata": packed, "_weight_scale": scale.T, "_weight_zero_point": points.T}
    return tensors, values.view(weight.shape)


def int4_smoothed(module: str, weight: Tensor) -> Made:
    """The like of AWQ, with a number for each input that activations are multiplied with."""
    smoothing = torch.rand(weight.shape[1]) + 0.5
    made = int4_packed(module, weight / smoothing)
    return made and ({**made[0], "_weight_act_pre_scale": smoothing}, made[1] * smoothing)


WRITERS = [fp8, int8, int4_unpacked, int4_packed, int4_smoothed]


@pytest.mark.parametrize(("writer", "config"), [*((writer, CONFIG) for writer in WRITERS), (int4_packed, {})])
def test_checkpoints_in_the_published_layout(tmp_path: Path, writer: Any, config: dict[str, Any]) -> None:
    check(*write(tmp_path, config, writer))


def test_codes_for_one_kernel_are_refused_by_name(tmp_path: Path) -> None:
    def packed(module: str, weight: Tensor) -> Made:
        if not inner(module):
            return None
        codes = torch.zeros(len(weight) // 8, weight.shape[1] // 64, 32, 4, dtype=torch.int32)
        return {"_weight_qdata": codes, "_weight_scale": torch.ones(weight.shape[1] // 32, len(weight))}, weight

    with pytest.raises(CheckpointError, match=r"_weight_qdata is I32.*Float8Tensor, Int8Tensor, IntxUnpacked"):
        check(*write(tmp_path, CONFIG, packed))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Float8WeightOnlyConfig", {}),
        ("Int8WeightOnlyConfig", {"version": 2}),
        ("Int8DynamicActivationInt8WeightConfig", {"version": 2}),
        ("IntxWeightOnlyConfig", {"weight_dtype": torch.int4}),
    ],
)
def test_checkpoints_that_torchao_writes(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    support = pytest.importorskip("torchao.prototype.safetensors.safetensors_support")

    def writer(module: str, weight: Tensor) -> Made:
        if not inner(module):
            return None
        linear = torch.nn.Sequential(torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False))
        linear[0].weight.data.copy_(weight)
        if name.startswith("Intx"):
            options["granularity"] = quantization.PerGroup(32)
        quantization.quantize_(linear, getattr(quantization, name)(**options))
        tensors, _ = support.flatten_tensor_state_dict(linear.state_dict())
        values = linear[0].weight.dequantize().detach().float()
        return {entry.removeprefix("0."): tensor.clone() for entry, tensor in tensors.items()}, values

    check(*write(tmp_path, CONFIG, writer))
