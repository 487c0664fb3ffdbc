"""Quantizing weights while they load: int8 with a scale per row, int4 with a scale per group of neighbouring inputs.

Both are symmetric: value = q * scale. Works on any device. The CPU's kernels (native/kernels/pack.cpp) choose the same
values by themselves, so a change here is a change there. Called by `canonical.py`.
"""

import torch
from torch import Tensor

INT8_MAX = 127
INT4_MIN, INT4_MAX = -8, 7
CANDIDATES = [7.0 + 0.25 * step for step in range(9)]
"""Where the largest value of a group is put, in steps of its scale: which loses least is tried out."""


def quantize_int8(values: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of a weight, each with the scale that puts its largest magnitude at 127.

    Args:
        values: (rows, inputs), any float dtype.

    Returns: (rows, inputs) int8 and (rows,) float32.
    """
    wide = values.float()
    scales = wide.abs().amax(1) / INT8_MAX
    by = torch.where(scales > 0, scales, 1.0)
    return (wide / by[:, None]).round().clamp(-INT8_MAX, INT8_MAX).to(torch.int8), scales


def quantize_int4(values: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Rows of a weight in groups of `group` inputs; of a few scales the one with the least squared error is taken.

    Args:
        values: (rows, inputs), any float dtype.
        group: inputs that share a scale; the last group may be shorter.

    Returns: (rows, inputs) int8 from -8 to 7, and (rows, groups) float32; a scale has the sign that puts the value with
    the largest magnitude at -8 or near it.
    """
    rows, inputs = values.shape
    groups = -(-inputs // group)
    wide = torch.nn.functional.pad(values.float(), (0, groups * group - inputs)).view(rows, groups, group)
    largest = wide.gather(2, wide.abs().argmax(2, keepdim=True))
    inverse = torch.where(largest == 0, 0.0, -1 / largest)
    best, scales = torch.full_like(largest, -1.0), torch.zeros_like(largest)
    for candidate in CANDIDATES:
        q = _clipped(wide * (inverse * candidate))
        both, square = (q * wide).sum(2, keepdim=True), (q * q).sum(2, keepdim=True)
        better = both * both > best * square
        best = torch.where(better, both * both / square, best)
        scales = torch.where(better, both / square, scales)
    by = torch.where(scales == 0, 1.0, scales)
    return _clipped(wide / by).view(rows, -1)[:, :inputs].to(torch.int8), scales[:, :, 0]


def dequantize(quantized: Tensor, scales: Tensor, group: int) -> Tensor:
    """Float32 values of (rows, inputs) integers whose groups of `group` inputs have (rows, groups) scales."""
    return quantized.float() * scales.repeat_interleave(group, 1)[:, : quantized.shape[1]]


def _clipped(values: Tensor) -> Tensor:
    return values.round().clamp(INT4_MIN, INT4_MAX)
