"""Weights in ggml's blocks, kept as they lie in the file: codes, scales and minima of 32 or 256 values together.

Each type's arithmetic is ggml's own (ggml-quants.c, `dequantize_row_*`), in float32: codes times scales of groups, and
for some a shift. A `Storage` of `ops/stored.py`; where kernels read the form with scales, blocks become that as they
are loaded (`scaled`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quire.quantization.elements import ELEMENTS, pack
from quire.quantization.scaled import Block, Form


@dataclass(frozen=True, slots=True)
class BlockForm:
    """A type of ggml's: `per` values in `each` bytes."""

    kind: str
    per: int
    each: int
    bits: int = 8
    row_block: int = 1
    group: None = None
    ordered: bool = False

    @property
    def scaled(self) -> Form | None:
        """The form with scales that has the same values; None for types that it would make three times as large."""
        return None if self.kind == "Q2_K" or self.kind not in SPLITS else SPLITS[self.kind][0]


@dataclass(frozen=True, slots=True)
class Blocks:
    """A weight of `outputs` rows and `inputs` columns in blocks of `form`; a `Storage`.

    Blocks of a row are held whole; `offset` columns of the first one belong to another rank.
    """

    outputs: int
    inputs: int
    form: BlockForm
    dtype: str
    device: str
    offset: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self.outputs * self._row

    @property
    def _row(self) -> int:
        return -(-(self.offset + self.inputs) // self.form.per) * self.form.each

    def allocate(self) -> Tensor:
        """Zeros, which are zeros in every type."""
        return torch.zeros(self.nbytes, dtype=torch.uint8, device=self.device)

    def put(self, data: Tensor, first: int, values: Tensor) -> None:
        """Never asked for: nothing is quantized to these types."""
        raise NotImplementedError("blocks are read from files only")

    def put_block(self, data: Tensor, first: int, block: Block) -> None:
        """Store rows from `first` on."""
        data[: self.nbytes].view(self.outputs, self._row)[first : first + len(block.codes)] = block.codes

    def rows(self, data: Tensor, ids: Tensor) -> Tensor:
        """Rows `ids` (n,) as (n, inputs) values."""
        raw = data[: self.nbytes].view(self.outputs, self._row)[ids].view(-1, self.form.each)
        found = values(self.form.kind, raw).view(len(ids), -1)[:, self.offset : self.offset + self.inputs]
        return found.to(getattr(torch, self.dtype))


@dataclass(frozen=True, slots=True)
class Split:
    """Blocks taken apart: values are codes (of a form's type) times scales, plus shifts; types of 256 count these.

    Attributes:
        codes: (blocks, values) uint8.
        unit, shift_unit: (blocks, 1) float32, values of float16; of types of 32 values scale and shift themselves.
        steps, shift_steps: (blocks, groups) int8: how many units a scale, or a shift, is.
    """

    codes: Tensor
    unit: Tensor
    steps: Tensor | None = None
    shift_unit: Tensor | None = None
    shift_steps: Tensor | None = None

    @property
    def scales(self) -> Tensor:
        """(blocks, groups) float32."""
        return self.unit if self.steps is None else self.unit * self.steps

    @property
    def shifts(self) -> Tensor | None:
        """(blocks, groups) float32."""
        if self.shift_unit is None or self.shift_steps is None:
            return self.shift_unit
        return self.shift_unit * self.shift_steps


def _half(raw: Tensor) -> Tensor:
    """(blocks, 2 n) bytes as (blocks, n) numbers of 16 bits."""
    return raw.contiguous().view(torch.float16).float()


def _nibbles(raw: Tensor) -> Tensor:
    """All low halves, then all high ones."""
    return torch.cat((raw & 15, raw >> 4), 1)


def _fifth(raw: Tensor) -> Tensor:
    """32 bits of 4 bytes, each as the fifth bit of a code."""
    shifts = torch.arange(8, device=raw.device)
    return ((raw[:, :, None] >> shifts & 1) << 4).flatten(1).to(torch.uint8)


def _q4_1(raw: Tensor) -> Split:
    return Split(_nibbles(raw[:, 4:]), _half(raw[:, :2]), shift_unit=_half(raw[:, 2:4]))


def _q5_1(raw: Tensor) -> Split:
    return Split(_nibbles(raw[:, 8:]) | _fifth(raw[:, 4:8]), _half(raw[:, :2]), shift_unit=_half(raw[:, 2:4]))


def _two_bits(raw: Tensor) -> Tensor:
    """(n, 64) bytes as (n, 256) codes: of each 32 bytes first all lowest pairs of bits, then the next ones."""
    halves = raw.view(-1, 2, 1, 32)
    return (halves >> _shifts(raw, 2) & 3).flatten(1)


def _shifts(raw: Tensor, bits: int) -> Tensor:
    """How far to shift a byte for each of its parts. Made on the device: what is recorded copies nothing from hosts."""
    return torch.arange(0, 8, bits, device=raw.device, dtype=torch.uint8)[:, None]


def _q2_k(raw: Tensor) -> Split:
    scales, codes = raw[:, :16], _two_bits(raw[:, 16:80].contiguous())
    both = _half(raw[:, 80:84])
    return Split(codes, both[:, :1], (scales & 15).char(), -both[:, 1:], (scales >> 4).char())


def _q3_k(raw: Tensor) -> Split:
    low = _two_bits(raw[:, 32:96].contiguous())
    high = (raw[:, None, :32] >> _shifts(raw, 1) & 1).flatten(1)
    packed = raw[:, 96:108]
    fours = torch.cat((packed[:, :8] & 15, packed[:, :8] >> 4), 1)
    twos = (packed[:, None, 8:12] >> _shifts(raw, 2) & 3).flatten(1)
    return Split(low | high << 2, _half(raw[:, 108:110]), (fours | twos << 4).char() - 32)


def _six_bit_scales(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and minima of the 8 parts of a block, packed in 12 bytes."""
    first, second, third = raw[:, :4], raw[:, 4:8], raw[:, 8:12]
    scales = torch.cat((first & 63, third & 15 | first >> 2 & 48), 1)
    minima = torch.cat((second & 63, third >> 4 | second >> 2 & 48), 1)
    return scales, minima


def _eighths(raw: Tensor, codes: Tensor) -> Split:
    """256 codes whose 8 parts have scales and minima; `raw` begins with the two numbers that these count."""
    both, (scales, minima) = _half(raw[:, :4]), _six_bit_scales(raw[:, 4:16])
    return Split(codes, both[:, :1], scales.char(), -both[:, 1:], minima.char())


def _quarters(raw: Tensor) -> Tensor:
    """(n, 128) bytes as (n, 256) codes: of each 32 bytes all low halves, then all high ones."""
    return (raw.view(-1, 4, 1, 32) >> _shifts(raw, 4) & 15).flatten(1)


def _q4_k(raw: Tensor) -> Split:
    return _eighths(raw, _quarters(raw[:, 16:144].contiguous()))


def _q5_k(raw: Tensor) -> Split:
    high = (raw[:, None, 16:48] >> _shifts(raw, 1) & 1).flatten(1)
    return _eighths(raw, _quarters(raw[:, 48:176].contiguous()) | high << 4)


def _q6_k(raw: Tensor) -> Split:
    low = (raw[:, :128].reshape(-1, 2, 1, 64) >> _shifts(raw, 4) & 15).flatten(1)
    codes = low | _two_bits(raw[:, 128:192].contiguous()) << 4
    return Split(codes, _half(raw[:, 208:210]), raw[:, 192:208].contiguous().view(torch.int8))


SPLITS: dict[str, tuple[Form, Callable[[Tensor], Split]]] = {
    "Q4_1": (Form("uint4", 32, shifted=True), _q4_1),
    "Q5_1": (Form("uint5", 32, shifted=True), _q5_1),
    "Q2_K": (Form("uint2", 16, shifted=True), _q2_k),
    "Q3_K": (Form("uint3b4", 16), _q3_k),
    "Q4_K": (Form("uint4", 32, shifted=True), _q4_k),
    "Q5_K": (Form("uint5", 32, shifted=True), _q5_k),
    "Q6_K": (Form("uint6b32", 16), _q6_k),
}
"""What each type is with scales, and (blocks, bytes of one) taken apart."""
FLOATS: dict[str, Callable[[Tensor], Tensor]] = {
    "F32": lambda raw: raw.contiguous().view(torch.float32),
    "F16": _half,
    "BF16": lambda raw: raw.contiguous().view(torch.bfloat16).float(),
}


def values(kind: str, raw: Tensor) -> Tensor:
    """(blocks, bytes of one) as (blocks, values) float32."""
    if kind in FLOATS:
        return FLOATS[kind](raw)
    form, split = SPLITS[kind]
    parts = split(raw)
    scales, shifts = parts.scales, parts.shifts
    found = ELEMENTS[form.element].decode(parts.codes).view(*scales.shape, -1) * scales[:, :, None]
    return (found if shifts is None else found + shifts[:, :, None]).flatten(1)


def scaled(form: BlockForm, raw: Tensor, inputs: int) -> Block:
    """Rows of blocks, (rows, bytes), as `form.scaled` has the first `inputs` of their values."""
    made, split = SPLITS[form.kind]
    parts, groups = split(raw.reshape(-1, form.each)), -(-inputs // (made.group or inputs))
    codes, scales, shifts = (
        None if part is None else part.reshape(len(raw), -1)[:, :count].contiguous()
        for part, count in ((parts.codes, inputs), (parts.scales, groups), (parts.shifts, groups))
    )
    assert codes is not None and scales is not None
    return Block(pack(codes, made.bits), scales, shifts=shifts)
