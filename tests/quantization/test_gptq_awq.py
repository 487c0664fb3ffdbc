"""GPTQ and AWQ checkpoints, written bit by bit after their published layouts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from quire.base.errors import CheckpointError
from tests.models.driver import Driver
from tests.quantization.checkpoints import check, inner, write

pytestmark = pytest.mark.torch
Made = tuple[dict[str, Tensor], Tensor]


def words(codes: Tensor, bits: int) -> Tensor:
    """(n, columns) numbers packed down each column into (n * bits / 32, columns) words, by Python's whole numbers."""
    made = []
    for column in codes.T.tolist():
        stream = sum(code << (bits * i) for i, code in enumerate(column))
        packed = stream.to_bytes(len(column) * bits // 8, "little")
        made.append([int.from_bytes(packed[i : i + 4], "little", signed=True) for i in range(0, len(packed), 4)])
    return torch.tensor(made, dtype=torch.int32).T.contiguous()


def quantized(weight: Tensor, bits: int, order: Tensor, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (outputs, inputs), scales in float16 and zero points (outputs, groups)."""
    groups = int(order.max()) + 1
    scales, zeros = torch.empty(len(weight), groups), torch.empty(len(weight), groups)
    for i in range(groups):
        part = weight[:, order == i]
        if symmetric:
            scales[:, i] = part.abs().amax(1) / (2 ** (bits - 1) - 0.5)
            zeros[:, i] = 2 ** (bits - 1)
        else:
            low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
            scales[:, i] = (high - low) / (2**bits - 1)
            zeros[:, i] = (-low / scales[:, i]).round().clamp(0, 2**bits - 1)
    scales = scales.half()
    codes = (weight / scales.float()[:, order] + zeros[:, order]).round().clamp(0, 2**bits - 1)
    return codes.int(), scales, zeros.int()


def gptq(weight: Tensor, bits: int, group: int, *, act: bool, symmetric: bool, less: int) -> Made:
    order = torch.arange(weight.shape[1]) // group
    if act:
        order = order[torch.randperm(len(order), generator=torch.Generator().manual_seed(len(weight)))]
    codes, scales, zeros = quantized(weight, bits, order, symmetric)
    values = (codes - zeros[:, order]).float() * scales.float()[:, order]
    tensors = {
        "qweight": words(codes.T, bits),
        "qzeros": words((zeros - less) % 2**bits, bits).T,
        "scales": scales.T,
        "g_idx": order.int(),
        "bias": torch.zeros(len(weight)),
    }
    return tensors, values


@pytest.mark.parametrize(
    ("bits", "act", "symmetric", "version"),
    [
        *((bits, bits % 2 == 0, False, version) for bits in (2, 3, 4, 8) for version in (1, 2)),
        *((4, act, True, 1) for act in (False, True)),
        (8, False, True, 1),
    ],
)
def test_gptq(bits: int, act: bool, symmetric: bool, version: int, tmp_path: Path) -> None:
    def writer(module: str, weight: Tensor) -> Made | None:
        if not inner(module):
            return None
        # Nothing below 0: its zero points are 0.
        weight = weight.abs() if module.endswith("k_proj") else weight
        return gptq(weight, bits, 32, act=act, symmetric=symmetric, less=2 - version)

    config: dict[str, Any] = {"quant_method": "gptq", "bits": bits, "group_size": 32, "desc_act": act, "sym": symmetric}
    if version == 2:
        config["checkpoint_format"] = "gptq_v2"
    check(*write(tmp_path, config, writer))


def test_gptq_with_a_quantized_head_and_one_group_a_row(tmp_path: Path) -> None:
    def writer(module: str, weight: Tensor) -> Made | None:
        if not inner(module) and module != "lm_head":
            return None
        return gptq(weight, 4, weight.shape[1], act=False, symmetric=True, less=1)

    check(*write(tmp_path, {"quant_method": "gptq", "bits": 4, "group_size": -1, "lm_head": True}, writer))


@pytest.mark.parametrize("told", ["quantize_config.json", None])
def test_gptq_that_config_json_does_not_mention(told: str | None, tmp_path: Path) -> None:
    writer = lambda module, weight: gptq(weight, 4, 32, act=False, symmetric=False, less=1) if inner(module) else None  # noqa: E731
    folder, plain, values = write(tmp_path, {}, writer)
    if told is not None:
        (folder / told).write_text('{"bits": 4, "group_size": 32, "desc_act": false, "sym": false}')
    check(folder, plain, values)


def test_a_kernels_own_order_is_refused(tmp_path: Path) -> None:
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "marlin"}
    folder, _, _ = write(tmp_path, config, lambda module, weight: None)
    with pytest.raises(CheckpointError, match="checkpoint_format 'marlin' is not supported; supported: gptq, gptq_v2"):
        Driver(folder, 4)


def awq(weight: Tensor, group: int) -> Made:
    order = torch.arange(weight.shape[1]) // group
    codes, scales, zeros = quantized(weight, 4, order, symmetric=False)
    values = (codes - zeros[:, order]).float() * scales.float()[:, order]
    tensors = {}
    for name, numbers in (("qweight", codes.T), ("qzeros", zeros.T)):
        rows = []
        for row in numbers.tolist():
            eights = [row[i : i + 8] for i in range(0, len(row), 8)]
            whole = [sum(eight[j] << (4 * i) for i, j in enumerate((0, 2, 4, 6, 1, 3, 5, 7))) for eight in eights]
            rows.append([word - (1 << 32) if word >> 31 else word for word in whole])
        tensors[name] = torch.tensor(rows, dtype=torch.int32)
    return {**tensors, "scales": scales.T}, values


def test_awq(tmp_path: Path) -> None:
    writer = lambda module, weight: awq(weight, 64) if inner(module) else None  # noqa: E731
    config = {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm", "zero_point": True}
    check(*write(tmp_path, config, writer))
