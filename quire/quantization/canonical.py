"""The canonical form of quantized weights: integers row by row, scales behind them, all in one tensor of bytes.

int8: (outputs, inputs) int8 and (outputs,) float32. int4: (outputs, inputs / 2) bytes, the even input in the low half,
value + 8, and (outputs, groups) float32. What quantizes online or reads a quantized checkpoint fills this form or hands
it to a kernel's own packing; where no kernel has one, products take the values back to floats.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quire.quantization.online import dequantize, quantize_int4, quantize_int8

ALIGNMENT = 16
"""Bytes that the scales begin at a multiple of."""


@dataclass(frozen=True, slots=True)
class Canonical:
    """A weight of `outputs` rows and `inputs` columns in `bits` (8 or 4) bits.

    Attributes:
        group: inputs that share a scale; for 8 bits a row shares one, and this is not looked at.
        dtype: of the values that are taken and given.
    """

    outputs: int
    inputs: int
    bits: int
    group: int
    dtype: str
    device: str

    def allocate(self) -> Tensor:
        """Bytes for the weight, all values zero."""
        return torch.zeros(self._offset + self.outputs * self._groups * 4, dtype=torch.uint8, device=self.device)

    def put(self, data: Tensor, first: int, values: Tensor) -> None:
        """Quantize `values` (rows, inputs) into the rows from `first` on."""
        if self.bits == 8:
            self.put_quantized(data, first, *quantize_int8(values))
        else:
            quantized, scales = quantize_int4(values, self.group)
            self.put_quantized(data, first, halves(quantized), scales)

    def put_quantized(self, data: Tensor, first: int, values: Tensor, scales: Tensor) -> None:
        """Take rows that are quantized already, in this form."""
        integers, factors = self.views(data)
        integers[first : first + len(values)] = values
        factors[first : first + len(values)] = scales.view(len(values), -1)

    def rows(self, data: Tensor, ids: Tensor) -> Tensor:
        """Rows `ids` (n,) as (n, inputs) values."""
        integers, factors = self.views(data)
        quantized = integers[ids]
        if self.bits == 4:
            quantized = torch.stack((quantized & 15, quantized >> 4), 2).flatten(1)[:, : self.inputs].char() - 8
        group = self.inputs if self.bits == 8 else self.group
        values: Tensor = dequantize(quantized, factors[ids], group).to(getattr(torch, self.dtype))
        return values

    def views(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """The integers, (outputs, columns), and the scales, (outputs, groups)."""
        integers = data[: self.outputs * self._columns].view(self.outputs, self._columns)
        scales = data[self._offset :].view(torch.float32).view(self.outputs, self._groups)
        return (integers.view(torch.int8) if self.bits == 8 else integers), scales

    @property
    def _columns(self) -> int:
        return self.inputs if self.bits == 8 else -(-self.inputs // 2)

    @property
    def _groups(self) -> int:
        return 1 if self.bits == 8 else -(-self.inputs // self.group)

    @property
    def _offset(self) -> int:
        return -(-self.outputs * self._columns // ALIGNMENT) * ALIGNMENT


def halves(quantized: Tensor) -> Tensor:
    """(rows, inputs) integers from -8 to 7 as (rows, inputs / 2) bytes; an odd last input gets a zero beside it."""
    raised = torch.nn.functional.pad(quantized, (0, quantized.shape[1] % 2)) + 8
    pairs = raised.to(torch.uint8).view(len(quantized), -1, 2)
    return pairs[:, :, 0] | pairs[:, :, 1] << 4
