"""Products with weights that are not stored row by row in the model's dtype: packed for a kernel, or quantized.

A provider offers a way to store a weight by `offer`; the way is chosen when the weight is made, and is part of the spec
of everything that reads it. The references turn the weight back into rows of values, so they serve every way.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.ops.registry import op
from quire.ops.samples import FLOATS, normal
from quire.quantization.blocks import Blocks
from quire.quantization.canonical import Canonical
from quire.quantization.scaled import Form, Scaled
from quire.quantization.stacked import Stacked
from quire.quantization.storage import Storage

Bits = Literal[4, 8]
BITS: tuple[Bits | None, ...] = (None, 8, 4)


@dataclass(frozen=True, slots=True)
class WeightSpec:
    """A weight to be stored: this rank's share of a matrix.

    Attributes:
        bits: of a quantized weight: 8 with a scale per row, 4 with one per `group` inputs; None is not quantized.
        dtype: of its values.
        matrices: how many of equal size, one after another, each read by itself: gates, ups or downs of experts.
    """

    outputs: int
    inputs: int
    bits: Bits | None
    group: int
    dtype: str
    device: str
    matrices: int = 1


Asked = TypeVar("Asked")


class Ways(dict[str, Callable[[Asked], Storage | None]]):
    """Provider to its way of storing a weight that is asked for, or None for one that it leaves to others."""

    def by(self, name: str) -> Callable[[Callable[[Asked], Storage | None]], Callable[[Asked], Storage | None]]:
        """Make the decorated function provider `name`'s way."""

        def add(function: Callable[[Asked], Storage | None]) -> Callable[[Asked], Storage | None]:
            self[name] = function
            return function

        return add

    def first(self, asked: Asked, providers: Sequence[str]) -> Storage | None:
        """The way of the first provider that has one."""
        found = (self[name](asked) for name in providers if name in self)
        return next((storage for storage in found if storage is not None), None)


OFFERS: Ways[WeightSpec] = Ways()
"""Own packings of weights of full precision, or of integers."""
ARRANGES: Ways[Scaled] = Ways()
"""Own arrangements of weights with scales; the weight itself where it is read as it is."""
UNFOLDS: Ways[Blocks] = Ways()
"""The same for weights in ggml's blocks."""
offer, offered = OFFERS.by, OFFERS.first
arrange, arranged = ARRANGES.by, ARRANGES.first
unfold, unfolded = UNFOLDS.by, UNFOLDS.first


def storage_for(wanted: WeightSpec, providers: Sequence[str]) -> Storage | None:
    """The way of the first provider that has one; None is row by row in its dtype, for the op `linear`."""
    found = offered(wanted, providers)
    if found is not None:
        return found
    if wanted.bits is None:
        return None
    return Canonical(wanted.outputs, wanted.inputs, wanted.bits, wanted.group, wanted.dtype, wanted.device)


@dataclass(frozen=True, slots=True)
class StoredSpec:
    """A product with a stored weight, or rows of it."""

    storage: Storage
    bias: bool = False
    dtype: str = "float32"
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class StoredRowsSpec:
    """Rows `first` to `first + storage.outputs` of an embedding table of `vocab` rows."""

    storage: Storage
    vocab: int
    first: int = 0
    dtype: str = "float32"
    device: str = "cpu"


def _weights(outputs: int, inputs: int, group: int) -> Iterator[tuple[Storage, Tensor]]:
    """A weight in every way that there is."""
    for dtype in FLOATS:
        for bits in BITS:
            wanted = WeightSpec(outputs, inputs, bits, group, dtype, "cpu")
            ways = [storage_for(wanted, []), *(made(wanted) for made in OFFERS.values())]
            for storage in (way for way in ways if way is not None):
                data = storage.allocate()
                storage.put(data, 0, normal(dtype, outputs, inputs, seed=1))
                yield storage, data


FORMS = (
    Form("fp8_e4m3", None),
    Form("uint4b8", 32),
    Form("fp4_e2m1", 16, "float8_e4m3fn", factor="multiply"),
    Form("fp8_e4m3", 128),
    Form("uint4b8", 128, "float16"),
)
"""Weights with scales, of which samples are made."""


def scaled_samples(outputs: int, inputs: int, dtype: str) -> Iterator[tuple[Storage, Tensor]]:
    """Weights with scales, as they are and in every provider's arrangement."""
    for form in FORMS:
        plain = Scaled.of(outputs, inputs, form, dtype, "cpu")
        for storage in (plain, *(made(plain) for made in ARRANGES.values())):
            if storage is not None:
                data = storage.allocate()
                storage.put(data, 0, normal(dtype, outputs, inputs, seed=1))
                yield storage, data


def _linear_samples() -> Iterator[tuple[StoredSpec, dict[str, Any]]]:
    for dtype in FLOATS:
        for storage, weight in scaled_samples(40, 256, dtype):
            spec = StoredSpec(storage, True, dtype)
            tensors = {"x": normal(dtype, 3, 256) / 2, "weight": weight, "bias": normal(dtype, 40, seed=2)}
            yield spec, {**tensors, "spec": spec}
    for rows, inputs, outputs, bias, group in ((1, 16, 24, False, 32), (5, 70, 40, True, 32), (0, 8, 8, False, 128)):
        for storage, weight in _weights(outputs, inputs, group):
            spec = StoredSpec(storage, bias, storage.dtype)
            added = normal(storage.dtype, outputs, seed=2) if bias else None
            yield spec, {"x": normal(storage.dtype, rows, inputs), "weight": weight, "bias": added, "spec": spec}


def _embedding_samples() -> Iterator[tuple[StoredRowsSpec, dict[str, Any]]]:
    for first in (0, 10):
        for storage, weight in _weights(10 if first else 20, 6, 32):
            spec = StoredRowsSpec(storage, 20, first, storage.dtype)
            yield spec, {"ids": torch.tensor([0, 9, 10, 19, 3]), "weight": weight, "spec": spec}


TILE_VALUES = 1 << 22
"""Values of a weight that exist as such at one time."""
# Where activations are quantized too, a product is off by up to half a 127th of the largest activation for each input.
TOLERANCE = {"float32": (2e-2, 2e-1), "bfloat16": (3e-2, 2e-1), "float16": (2e-2, 2e-1)}


@op(samples=_linear_samples, tolerance=TOLERANCE)
def stored_linear(x: Tensor, weight: Tensor, bias: Tensor | None, spec: StoredSpec) -> Tensor:
    """x @ weight.T + bias. A provider may quantize `x` to 8 bits where the weight is quantized.

    Args:
        x: (tokens, inputs).
        weight: as `spec.storage` stores it.
        bias: (outputs,) or None.

    Returns: (tokens, outputs) in the dtype of `x`.
    """
    storage = spec.storage
    members = storage.each(weight) if isinstance(storage, Stacked) else [(0, storage, weight)]
    out = torch.empty(len(x), storage.outputs, dtype=x.dtype, device=x.device)
    step = max(1, TILE_VALUES // max(1, storage.inputs))
    for first, member, data in members:
        for begin in range(0, member.outputs, step):
            ids = torch.arange(begin, min(begin + step, member.outputs), device=x.device)
            tile = member.rows(data, ids).to(x.dtype)
            share = slice(first + begin, first + begin + len(ids))
            out[:, share] = F.linear(x, tile, None if bias is None else bias[share])
    return out


@op(samples=_embedding_samples, batch_invariant=True)
def stored_embedding(ids: Tensor, weight: Tensor, spec: StoredRowsSpec) -> Tensor:
    """The rows of a stored table that `ids` name; zeros for ids whose row another rank holds.

    Args:
        ids: (tokens,) int64, below `vocab`.
        weight: rows `first` to `first + outputs` of the table, as `spec.storage` stores them.

    Returns: (tokens, inputs).
    """
    if spec.storage.outputs >= spec.vocab:
        return spec.storage.rows(weight, ids)
    local = ids - spec.first
    elsewhere = (local < 0) | (local >= spec.storage.outputs)
    return spec.storage.rows(weight, local.masked_fill(elsewhere, 0)).masked_fill(elsewhere[:, None], 0)
