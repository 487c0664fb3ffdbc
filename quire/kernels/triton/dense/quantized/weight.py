"""Stored weights as these kernels see them: which they read, and what a launch is told of them."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quire.kernels.triton.dense.quantized.decode import BOOKS, EIGHTS, FOURS
from quire.kernels.triton.launch import INTERPRETED
from quire.ops.stored import WeightSpec, arrange, offer
from quire.quantization.scaled import Form, Scaled
from quire.quantization.storage import Storage
from quire.quantization.words import Words, span, widened

FINE, COARSE = (16, 32, 64), 128
"""Inputs that share a scale: one of FINE, or a multiple of COARSE."""
KINDS = {"int8": "signed", "uint8": "unsigned"}
"""What kernels call types that are stored as others are, or named like types of values."""
BYTES = ("float8_e4m3fn", "e8m0")
"""Scales that kernels see as bytes."""


@functools.cache
def converts(device: torch.device) -> bool:
    """Whether `device` widens floats of 8 bits, and multiplies bfloat16, by instructions."""
    if INTERPRETED or device.type != "cuda" or torch.version.cuda is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 9)


def runs_on(device: str) -> bool:
    """Whether these kernels run there."""
    return torch.device(device).type in ("cuda", "xpu") or INTERPRETED


def unread(storage: Storage) -> str | None:
    """Why these kernels do not read a weight; None if they do."""
    if not isinstance(storage, Scaled):
        return "reads weights with scales, not " + type(storage).__name__
    form = storage.form
    if widened(form.element) not in (*FOURS, *EIGHTS):
        return f"does not read {form.element}"
    if storage.offset:
        return "does not read weights with cut groups"
    if not isinstance(storage, Words):
        whole = f"reads rows of about a multiple of {span(form.bits)} inputs"
        return f"{whole}, and an order of all of their columns where these have no numbers"
    group = storage.inputs if form.zeros and form.group is None else form.group
    if group is not None and group not in FINE and group % COARSE:
        return f"does not read groups of {group} of {storage.inputs} inputs"
    if form.element == "fp4_e2m1" and group not in FINE:
        return f"reads fp4_e2m1 in groups of {FINE}"
    return None


@arrange("triton")
def arranged(weight: Scaled) -> Storage | None:
    """The weight as these kernels read it, None if they do not."""
    if not runs_on(weight.device):
        return None
    own = Words.like(weight) if Words.holds(weight) else weight
    return own if unread(own) is None else None


@offer("triton")
def _offered(wanted: WeightSpec) -> Storage | None:
    if wanted.bits is None or wanted.matrices > 1:
        return None
    form = Form("int8", None) if wanted.bits == 8 else Form("uint4b8", wanted.group)
    return arranged(Scaled.of(wanted.outputs, wanted.inputs, form, wanted.dtype, wanted.device))


@dataclass(frozen=True)
class Weight:
    """A weight on its way into a kernel.

    Attributes:
        storage: what `unread` has nothing against.
        data: its bytes.
    """

    storage: Scaled
    data: Tensor

    @property
    def outputs(self) -> int:
        """Rows."""
        return self.storage.outputs

    @property
    def inputs(self) -> int:
        """Columns."""
        return self.storage.inputs

    @property
    def bits(self) -> int:
        """Of a code."""
        return self.storage.form.bits

    @property
    def row_words(self) -> int:
        """Of 16 bits, of a row's codes."""
        return self.storage.width * self.bits // 16

    @property
    def words(self) -> Tensor:
        """(outputs, row_words) of 16 bits."""
        return self.storage.part(self.data, "codes").view(torch.uint16)

    @property
    def scales(self) -> Tensor:
        """(outputs / row_block, groups), those of 8 bits as bytes."""
        found = self.storage.part(self.data, "scales")
        return found.view(torch.uint8) if self.storage.form.scale in BYTES else found

    @property
    def shifts(self) -> Tensor | None:
        """(outputs, groups) float32, what is added to the values of each group; None where that is nothing."""
        return self.storage.part(self.data, "shifts") if self.storage.form.shifted else None

    @property
    def columns(self) -> Tensor | None:
        """(inputs,) float32, what each input is multiplied with first; None where that is nothing."""
        return self.storage.part(self.data, "columns") if self.storage.form.columns else None

    def sums(self, dtype: torch.dtype) -> torch.dtype:
        """Of products for activations of `dtype`: what shifts are still added to may be much larger than the sum."""
        return torch.float32 if self.storage.form.shifted else dtype

    @property
    def order(self) -> Tensor | None:
        """(inputs,) int32: which input each column belongs to; None where it is the one at its place."""
        return self.storage.part(self.data, "order") if self.storage.form.ordered else None

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Words, scales, zero points and factors; what there is not is another tensor."""
        form, part = self.storage.form, self.storage.part
        zeros = part(self.data, "zeros") if form.zeros else self.data
        factors = part(self.data, "factors") if form.factor else self.data.view(torch.float32)
        return self.words, self.scales, zeros, factors

    @property
    def constants(self) -> dict[str, Any]:
        """What a kernel is compiled for."""
        form = self.storage.form
        group = form.group or 0
        # Instructions look values of BOOKS up as float16, which is less than those of float32 hold.
        short = form.element in BOOKS and self.storage.dtype == "float32"
        return {
            "KIND": KINDS.get(form.element, form.element), "SCALE": form.scale, "BITS": form.bits,
            # A zero point belongs to a group, so a row with one is a group of its own.
            "GROUP": self.inputs if form.zeros and not group else group, "GROUPS": self.storage.groups,
            "ROW_BLOCK": form.row_block, "ZEROS": form.zeros, "FACTOR": form.factor or "",
            "NATIVE": converts(self.data.device) and not short,
        }  # fmt: skip
