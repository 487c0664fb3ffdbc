"""Weights in ggml's blocks, kept as they lie in the file: codes, scales and minima of 32 or 256 values together.

Each type's arithmetic is ggml's own (ggml-quants.c, `dequantize_row_*`), in float32. A `Storage` of `ops/stored.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quire.quantization.scaled import Block


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

    def put_quantized(self, data: Tensor, first: int, values: Tensor, scales: Tensor) -> None:
        """Never asked for: what is quantized already comes as a `Block`."""
        raise NotImplementedError("blocks are put by put_block")

    def put_block(self, data: Tensor, first: int, block: Block) -> None:
        """Store rows from `first` on."""
        data[: self.nbytes].view(self.outputs, self._row)[first : first + len(block.codes)] = block.codes

    def rows(self, data: Tensor, ids: Tensor) -> Tensor:
        """Rows `ids` (n,) as (n, inputs) values."""
        raw = data[: self.nbytes].view(self.outputs, self._row)[ids].view(-1, self.form.each)
        values: Tensor = KINDS[self.form.kind](raw).view(len(ids), -1)[:, self.offset : self.offset + self.inputs]
        return values.to(getattr(torch, self.dtype))


def _half(raw: Tensor) -> Tensor:
    """(blocks, 2 n) bytes as (blocks, n) numbers of 16 bits."""
    return raw.contiguous().view(torch.float16).float()


def _nibbles(raw: Tensor) -> Tensor:
    """All low halves, then all high ones."""
    return torch.cat((raw & 15, raw >> 4), 1)


def _fifth(raw: Tensor) -> Tensor:
    """32 bits of 4 bytes, each as the fifth bit of a code."""
    shifts = torch.arange(8, device=raw.device)
    return ((raw[:, :, None].int() >> shifts & 1) << 4).flatten(1)


def _q4_1(raw: Tensor) -> Tensor:
    return _half(raw[:, :2]) * _nibbles(raw[:, 4:]) + _half(raw[:, 2:4])


def _q5_1(raw: Tensor) -> Tensor:
    codes = _nibbles(raw[:, 8:]).int() | _fifth(raw[:, 4:8])
    return _half(raw[:, :2]) * codes + _half(raw[:, 2:4])


def _two_bits(raw: Tensor) -> Tensor:
    """(n, 64) bytes as (n, 256) codes: of each 32 bytes first all lowest pairs of bits, then the next ones."""
    halves = raw.view(-1, 2, 1, 32)
    return (halves >> torch.tensor([0, 2, 4, 6], device=raw.device)[:, None] & 3).flatten(1)


def _q2_k(raw: Tensor) -> Tensor:
    scales, codes = raw[:, :16], _two_bits(raw[:, 16:80].contiguous())
    both = _half(raw[:, 80:84])
    steps, minima = both[:, :1] * (scales & 15), both[:, 1:] * (scales >> 4)
    return (steps[:, :, None] * codes.view(-1, 16, 16) - minima[:, :, None]).flatten(1)


def _q3_k(raw: Tensor) -> Tensor:
    low = _two_bits(raw[:, 32:96].contiguous()).int()
    masks = raw[:, None, :32] >> torch.arange(8, device=raw.device)[:, None] & 1
    codes = low - 4 * (1 - masks.flatten(1).int())
    packed = raw[:, 96:108]
    fours = torch.cat((packed[:, :8] & 15, packed[:, :8] >> 4), 1)
    twos = (packed[:, None, 8:12] >> torch.tensor([0, 2, 4, 6], device=raw.device)[:, None] & 3).flatten(1)
    steps = _half(raw[:, 108:110]) * ((fours | twos << 4).int() - 32)
    return (steps[:, :, None] * codes.view(-1, 16, 16)).flatten(1)


def _six_bit_scales(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and minima of the 8 parts of a block, packed in 12 bytes."""
    first, second, third = raw[:, :4], raw[:, 4:8], raw[:, 8:12]
    scales = torch.cat((first & 63, third & 15 | first >> 2 & 48), 1)
    minima = torch.cat((second & 63, third >> 4 | second >> 2 & 48), 1)
    return scales, minima


def _eighths(raw: Tensor, codes: Tensor) -> Tensor:
    """Values of 256 codes whose 8 parts have scales and minima; `raw` begins with the two numbers that these count."""
    both, (scales, minima) = _half(raw[:, :4]), _six_bit_scales(raw[:, 4:16])
    steps, least = both[:, :1] * scales, both[:, 1:] * minima
    return (steps[:, :, None] * codes.view(-1, 8, 32) - least[:, :, None]).flatten(1)


def _quarters(raw: Tensor) -> Tensor:
    """(n, 128) bytes as (n, 256) codes: of each 32 bytes all low halves, then all high ones."""
    parts = raw.view(-1, 4, 1, 32)
    return (parts >> torch.tensor([0, 4], device=raw.device)[:, None] & 15).flatten(1)


def _q4_k(raw: Tensor) -> Tensor:
    return _eighths(raw, _quarters(raw[:, 16:144].contiguous()))


def _q5_k(raw: Tensor) -> Tensor:
    high = raw[:, None, 16:48] >> torch.arange(8, device=raw.device)[:, None] & 1
    return _eighths(raw, _quarters(raw[:, 48:176].contiguous()) | high.flatten(1) << 4)


def _q6_k(raw: Tensor) -> Tensor:
    low = raw[:, :128].reshape(-1, 2, 1, 64) >> torch.tensor([0, 4], device=raw.device)[:, None] & 15
    codes = (low.flatten(1) | _two_bits(raw[:, 128:192].contiguous()) << 4).int() - 32
    steps = _half(raw[:, 208:210]) * raw[:, 192:208].contiguous().view(torch.int8)
    return (steps[:, :, None] * codes.view(-1, 16, 16)).flatten(1)


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "Q4_1": _q4_1,
    "Q5_1": _q5_1,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "F32": lambda raw: raw.contiguous().view(torch.float32),
    "F16": _half,
    "BF16": lambda raw: raw.contiguous().view(torch.bfloat16).float(),
}
"""(blocks, bytes of one) to (blocks, values)."""
