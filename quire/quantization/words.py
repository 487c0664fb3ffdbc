"""Codes of 4 and 8 bits in the order in which GPU kernels take them: in words of 16 bits.

The parts of a word belong to inputs 32 apart, so a run of words becomes runs of values that meet neighbouring
activations, without a value ever moving between threads. Codes of types that kernels do not read become those of a type
that has the same values and more: all integers of 4 bits and less are natural numbers. Kernels offer this order by
`ops/stored.py`.
"""

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from quire.base.errors import CheckpointError
from quire.quantization.elements import ELEMENTS, unpack
from quire.quantization.scaled import Block, Scaled, ScaleType, scale_values

RUN = 32
"""Words of a run."""
MOST_ADDED = 1 / 8
"""Of a row, to make it end with a run."""
TYPES = ("uint4", "uint4b8", "fp4_e2m1", "nf4", "bnb_fp4", "uint8", "uint8b128", "int8", "fp8_e4m3", "fp8_e5m2")
"""Types of codes that are stored so, those that others become first."""


@dataclass(frozen=True)
class Words(Scaled):
    """A `Scaled` weight of 4-bit or 8-bit codes. Rows end with a run: codes of no input, and scales of those.

    Columns that say themselves which group they belong to are stored group by group; the part `order` then holds where
    each of the stored columns comes from.

    Attributes:
        given: the type of codes that blocks bring, whose values the form's type has as well.
    """

    given: str

    @staticmethod
    def holds(other: Scaled) -> bool:
        """Whether a weight can be stored so, with no more than `MOST_ADDED` of a row added."""
        form, kept = other.form, widened(other.form.element)
        if kept is None or other.offset:
            return False
        # Numbers of columns are kept in the order of the checkpoint.
        if form.ordered and form.columns:
            return False
        # A rank's share of the columns has other shares of each group.
        if form.ordered and (form.group is None or other.inputs != other.groups * form.group):
            return False
        return _whole(other.inputs, ELEMENTS[kept].bits) <= other.inputs * (1 + MOST_ADDED)

    @staticmethod
    def like(other: Scaled) -> "Words":
        """The same weight in this order."""
        given, groups = other.form.element, other.groups
        # Scales of blocks of rows are few, and libraries take them as float32 only.
        kind: ScaleType = "float32" if other.form.row_block > 1 else other.form.scale
        form = replace(other.form, element=widened(given) or given, scale=kind)
        if form.group is not None:
            groups = -(-_whole(other.inputs, form.bits) // form.group)
        return Words(other.outputs, other.inputs, form, groups, other.offset, other.dtype, other.device, given)

    def allocate(self) -> Tensor:
        """See `Scaled`; columns are in order until a block says otherwise."""
        data = super().allocate()
        if self.form.ordered:
            self.part(data, "order").copy_(torch.arange(self.inputs, device=self.device))
        return data

    @property
    def width(self) -> int:
        """See `Scaled`."""
        return _whole(self.inputs, self.form.bits)

    def put_block(self, data: Tensor, first: int, block: Block) -> None:
        """See `Scaled`; the block's codes are packed as everywhere else."""
        codes = unpack(block.codes, ELEMENTS[self.given].bits, self.inputs)
        if self.given != self.form.element:
            codes = _same(self.given, self.form.element, codes.device)[codes.int()]
        if block.scales.dtype == torch.uint8 and self.form.scale != "e8m0":
            block = replace(block, scales=scale_values(block.scales, "e8m0"))
        if block.order is not None:
            order = self._sorted(block.order)
            codes, block = codes[:, order], replace(block, order=order)
        codes = torch.nn.functional.pad(codes, (0, self.width - self.inputs))
        self.part(data, "codes")[first : first + len(codes)] = interleaved(codes, self.form.bits)
        self.put_scales(data, first, block)

    def quantize(self, values: Tensor) -> Block:
        """See `Scaled`; with codes as blocks bring them."""
        form = replace(self.form, element=self.given)
        plain = Scaled(self.outputs, self.inputs, form, self.groups, self.offset, self.dtype, self.device)
        return plain.quantize(values)

    def _sorted(self, groups: Tensor) -> Tensor:
        """The columns by their groups. Raises CheckpointError where groups are not of equal size."""
        order = torch.argsort(groups, stable=True)
        even = torch.arange(self.inputs, device=groups.device) // (self.form.group or self.inputs)
        if not torch.equal(groups[order].long(), even):
            raise CheckpointError(
                f"the groups of {self.inputs} inputs (g_idx) do not have {self.form.group} inputs each"
            )
        return order

    def rows(self, data: Tensor, ids: Tensor) -> Tensor:
        """See `Scaled`."""
        found = super().rows(data, ids)
        return found if not self.form.ordered else found[:, torch.argsort(self.part(data, "order"))]

    def _spread(self, data: Tensor, grouped: Tensor) -> Tensor:
        """See `Scaled`."""
        if not self.form.ordered:
            return super()._spread(data, grouped)
        return grouped.repeat_interleave(self.form.group or self.inputs, 1)[:, : self.inputs]

    def codes_of(self, data: Tensor, ids: Tensor) -> Tensor:
        """See `Scaled`."""
        found = self.part(data, "codes")[ids]
        if self.form.bits == 8:
            return found.view(len(ids), -1, RUN, 2).transpose(2, 3).reshape(len(ids), -1)[:, : self.inputs]
        runs = torch.stack((found & 15, found >> 4), 2).view(len(ids), -1, RUN, 4)
        return runs.transpose(2, 3).reshape(len(ids), -1)[:, : self.inputs]


@cache
def widened(element: str) -> str | None:
    """The type in which codes of `element` are stored: itself, or the first that has all of its values."""
    if element in TYPES:
        return element
    values = ELEMENTS[element].values
    return next((name for name in TYPES if set(values) <= set(ELEMENTS[name].values)), None)


@cache
def _same(element: str, other: str, device: torch.device) -> Tensor:
    """For each code of `element` the code of `other` that has its value."""
    codes = {value: code for code, value in enumerate(ELEMENTS[other].values)}
    return torch.tensor([codes[value] for value in ELEMENTS[element].values], dtype=torch.uint8, device=device)


def span(bits: int) -> int:
    """Inputs of a run of words."""
    return RUN * 16 // bits


def _whole(inputs: int, bits: int) -> int:
    """Inputs of a row in whole runs."""
    return -(-inputs // span(bits)) * span(bits)


def interleaved(codes: Tensor, bits: int) -> Tensor:
    """(rows, inputs) codes as (rows, bytes) in the order of `Words`."""
    runs = codes.view(len(codes), -1, 16 // bits, RUN).transpose(2, 3).reshape(len(codes), -1)
    return runs if bits == 8 else runs[:, 0::2] | runs[:, 1::2] << 4
