"""Codes of 4 and 8 bits in the order in which GPU kernels take them: in words of 16 bits.

The parts of a word belong to inputs 32 apart, so a run of words becomes runs of values that meet neighbouring
activations, without a value ever moving between threads. Codes of int4 are raised by 8 as they are stored, so that all
4-bit integers are natural numbers. Kernels offer this order by `ops/stored.py`.
"""

import torch
from torch import Tensor

from quire.quantization.elements import unpack
from quire.quantization.scaled import Block, Scaled

RUN = 32
"""Words of a run."""


class Words(Scaled):
    """A `Scaled` weight of 4-bit or 8-bit codes whose inputs are a multiple of a run's."""

    @staticmethod
    def holds(other: Scaled) -> bool:
        """Whether a weight can be stored so."""
        return other.form.bits in (4, 8) and other.inputs % span(other.form.bits) == 0

    @staticmethod
    def like(other: Scaled) -> "Words":
        """The same weight in this order."""
        return Words(other.outputs, other.inputs, other.form, other.groups, other.offset, other.dtype, other.device)

    def put_block(self, data: Tensor, first: int, block: Block) -> None:
        """See `Scaled`; the block's codes are packed as everywhere else."""
        codes = unpack(block.codes ^ self._raised, self.form.bits, self.inputs)
        self.part(data, "codes")[first : first + len(codes)] = woven(codes, self.form.bits)
        self.put_scales(data, first, block)

    def codes_of(self, data: Tensor, ids: Tensor) -> Tensor:
        """See `Scaled`."""
        found = self.part(data, "codes")[ids] ^ self._raised
        if self.form.bits == 8:
            return found.view(len(ids), -1, RUN, 2).transpose(2, 3).reshape(len(ids), -1)
        runs = torch.stack((found & 15, found >> 4), 2).view(len(ids), -1, RUN, 4)
        return runs.transpose(2, 3).reshape(len(ids), -1)

    @property
    def _raised(self) -> int:
        return 0x88 if self.form.element == "int4" else 0


def span(bits: int) -> int:
    """Inputs of a run of words."""
    return RUN * 16 // bits


def woven(codes: Tensor, bits: int) -> Tensor:
    """(rows, inputs) codes as (rows, bytes) in the order of `Words`."""
    runs = codes.view(len(codes), -1, 16 // bits, RUN).transpose(2, 3).reshape(len(codes), -1)
    return runs if bits == 8 else runs[:, 0::2] | runs[:, 1::2] << 4
