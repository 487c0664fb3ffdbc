"""compressed-tensors checkpoints, written by that package."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.quantization.checkpoints import check, inner, write

compressors = pytest.importorskip("compressed_tensors.compressors")
quantization = pytest.importorskip("compressed_tensors.quantization")

forward = pytest.importorskip("compressed_tensors.quantization.lifecycle.forward")
helpers = pytest.importorskip("compressed_tensors.compressors.nvfp4.helpers")

pytestmark = pytest.mark.torch
SCHEMES: dict[str, tuple[str, dict[str, Any]]] = {
    "w4a16": ("pack_quantized", {"num_bits": 4, "strategy": "group", "group_size": 32}),
    "w4a16-asym": ("pack_quantized", {"num_bits": 4, "strategy": "group", "group_size": 64, "symmetric": False}),
    "w4a16-actorder": ("pack_quantized", {"num_bits": 4, "strategy": "group", "group_size": 32, "actorder": "weight"}),
    "w8a16": ("pack_quantized", {"num_bits": 8, "strategy": "channel"}),
    "w3a16": ("pack_quantized", {"num_bits": 3, "strategy": "group", "group_size": 32}),
    "int8-channel": ("naive_quantized", {"num_bits": 8, "strategy": "channel"}),
    "int8-tensor": ("naive_quantized", {"num_bits": 8, "strategy": "tensor"}),
    "fp8-channel": ("naive_quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
    "fp8-tensor": ("naive_quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}),
    "fp8-block": (
        "naive_quantized",
        {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [64, 64]},
    ),
    "nvfp4": ("nvfp4", {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}),
    "mxfp4": ("mxfp4", {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}),
}
CLASSES = {
    "pack_quantized": "PackedQuantizationCompressor",
    "naive_quantized": "NaiveQuantizationCompressor",
    "nvfp4": "NVFP4PackedCompressor",
    "mxfp4": "MXFP4PackedCompressor",
}


def scales(weight: Tensor, args: Any) -> dict[str, Tensor]:
    """What calibration by the largest magnitude gives."""
    largest = {4: 6.0, 8: 448.0}[args.num_bits] if args.type == "float" else float(2 ** (args.num_bits - 1) - 1)
    rows, columns = weight.shape
    if args.strategy == "tensor":
        return {"weight_scale": (weight.abs().max() / largest).view(1)}
    if args.strategy == "channel":
        return {"weight_scale": weight.abs().amax(1, keepdim=True) / largest}
    if args.strategy == "block":
        height, width = args.block_structure
        tiles = weight.view(rows // height, height, columns // width, width)
        return {"weight_scale": tiles.abs().amax((1, 3)) / largest}
    blocks = weight.view(rows, -1, args.group_size)
    amax = blocks.abs().amax(2)
    if args.strategy == "tensor_group":
        whole = 6 * 448 / weight.abs().max()
        return {
            "weight_scale": (amax / largest * whole).to(torch.float8_e4m3fn).float(),
            "weight_global_scale": whole.view(1),
        }
    if args.type == "float":
        return {"weight_scale": torch.pow(2.0, (amax / largest).log2().ceil())}
    if not args.symmetric:
        low, high = blocks.amin(2).clamp(max=0), blocks.amax(2).clamp(min=0)
        scale = (high - low) / 15
        return {"weight_scale": scale, "weight_zero_point": (-8 - low / scale).round().clamp(-8, 7).to(torch.int8)}
    return {"weight_scale": amax / largest}


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_every_scheme(name: str, tmp_path: Path) -> None:
    kind, options = SCHEMES[name]
    args = quantization.QuantizationArgs(**options)
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=args)
    tool = getattr(compressors, CLASSES[kind])

    def writer(module: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor] | None:
        if not inner(module):
            return None
        torch.manual_seed(len(module))
        stored = tool.compress({"weight": weight, **scales(weight, args)}, scheme)
        if kind == "nvfp4":
            # The tool's own way back ends in bfloat16; its arithmetic in float32 is the same.
            codes = helpers.unpack_fp4_from_uint8(stored["weight_packed"], *weight.shape, torch.float32)
            whole = stored["weight_global_scale"]
            return stored, forward.dequantize(codes, stored["weight_scale"].float(), args=args, global_scale=whole)
        return stored, tool.decompress(dict(stored), scheme)["weight"].float()

    config = {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": args.model_dump(mode="json")}},
        "ignore": ["re:.*lm_head"],
    }
    check(*write(tmp_path, config, writer))


def test_order_by_activation(tmp_path: Path) -> None:
    """Groups of columns that are not neighbours, which older releases of the package wrote (`weight_g_idx`)."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    def writer(module: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor] | None:
        if not inner(module):
            return None
        order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(len(module))) // 32
        amax = torch.stack([weight[:, order == i].abs().amax(1) for i in range(weight.shape[1] // 32)], 1)
        scale = amax / 7
        codes = (weight / scale[:, order]).round().clamp(-8, 7).to(torch.int8)
        shape = torch.tensor(weight.shape)
        stored = {"weight_packed": pack_to_int32(codes, 4), "weight_scale": scale, "weight_shape": shape}
        return {**stored, "weight_g_idx": order.int()}, codes.float() * scale[:, order]

    check(*write(tmp_path, {"quant_method": "compressed-tensors"}, writer))


def test_integers_with_zero_points(tmp_path: Path) -> None:
    def writer(module: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor] | None:
        if not inner(module):
            return None
        low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
        scale = (high - low) / 255
        zero = (-128 - low / scale).round().clamp(-128, 127).to(torch.int8)
        codes = (weight / scale + zero).round().clamp(-128, 127).to(torch.int8)
        values = (codes.float() - zero.float()) * scale
        return {"weight": codes, "weight_scale": scale, "weight_zero_point": zero}, values

    check(*write(tmp_path, {"quant_method": "compressed-tensors"}, writer))
