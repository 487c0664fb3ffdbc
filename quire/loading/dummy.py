"""Random weights for runs without a checkpoint, made on the device that holds them.

The value of each entry is a hash of (seed, tensor name, row and column in the whole tensor), so it depends neither on
the rank that makes it nor on how tensors are cut or fused: tensor-parallel 1 and 2 get the same model.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import groupby

import torch
from torch import Tensor

from quire.loading.recipe import Parametrised, Part, Span, Weight, weights_of
from quire.parallel.mesh import Mesh

BLOCK_ITEMS = 1 << 22
"""Entries made at once: few enough that a GPU keeps them in its cache between two operations."""
# Multipliers of the finalizers of MurmurHash3, as signed numbers: two for 64 bits, two for 32.
_LONG = (0xFF51AFD7ED558CCD - (1 << 64), 0xC4CEB9FE1A85EC53 - (1 << 64))
_SHORT = (0x85EBCA6B - (1 << 32), 0xC2B2AE35 - (1 << 32))
_ROWS, _COLUMNS = 0, 1

Hashes = Callable[[Span, int, torch.device], Tensor]


@torch.no_grad()
def fill_dummy(model: Parametrised, seed: int, mesh: Mesh) -> None:
    """Give every parameter of `model` random values: matrices keep the scale of their input, norms are close to 1."""
    # Layers have matrices of the same sizes.
    hashes = cache(_hashes)
    for weight in weights_of(model):
        row = 0
        for parts, spans in _runs(weight, mesh):
            rows = len(parts) * (spans[0].length + spans[0].zeros)
            storage = weight.stored
            if storage is None:
                _fill(weight.data[row : row + rows], parts, spans, seed, hashes)
            else:
                dtype = getattr(torch, storage.dtype)
                values = torch.empty(rows, storage.inputs, dtype=dtype, device=weight.device)
                _fill(values, parts, spans, seed, hashes)
                storage.put(weight.data, row, values)
            row += rows
        if weight.recipe.center:
            weight.data.add_(weight.recipe.center)


def _runs(weight: Weight, mesh: Mesh) -> Iterator[tuple[list[Part], list[Span]]]:
    """Neighbouring parts that are cut alike (experts come by the hundred), and how they are cut."""
    cut = ((part.spans(mesh.rank, mesh.size), part) for part in weight.recipe.parts)
    for (spans, _), run in groupby(cut, key=lambda entry: (entry[0], entry[1].shape)):
        parts = [part for _, part in run]
        if any(span.zeros for span in spans):
            yield from (([part], spans) for part in parts)
        else:
            yield parts, spans


def _fill(target: Tensor, parts: list[Part], spans: list[Span], seed: int, hashes: Hashes) -> None:
    """Fill the rows of `parts`, one after another. Parts that are padded come alone."""
    for dim, span in enumerate(spans):
        if span.zeros:
            target.narrow(dim, span.length, span.zeros).zero_()
            target = target.narrow(dim, 0, span.length)
    matrix = target[:, None] if target.dim() == 1 else target.flatten(1)
    # Unit variance in gives unit variance out; vectors (norms, biases) scatter a little.
    first = parts[0]
    inputs = first.shape[-1] if first.columns is None else first.columns[1]
    deviation = inputs**-0.5 if len(first.shape) > 1 else 0.05
    keys = torch.tensor([_key(seed, part.name) for part in parts], dtype=torch.int32, device=target.device)
    rows = (keys[:, None] + hashes(spans[0], _ROWS, target.device)).view(-1, 1)
    columns = hashes(spans[1] if len(spans) == 2 else Span(0, matrix.shape[1]), _COLUMNS, target.device)
    step = max(1, BLOCK_ITEMS // max(1, len(columns)))
    for begin in range(0, len(rows), step):
        values = _mix(rows[begin : begin + step] + columns)
        # The variance of a uniform number in [-1, 1) is a third.
        torch.mul(values, deviation * 3**0.5 / (1 << 31), out=matrix[begin : begin + step])
    if first.halves is not None:
        # Which rows they are must not depend on the ranks.
        target.copy_(replace(first, plus=0.0).changed(target))


def _mix(x: Tensor) -> Tensor:
    """`x`, an int32 each, with all bits mixed into the high ones; in place."""
    x.mul_(_SHORT[0])
    x.bitwise_xor_(x >> 15)
    return x.mul_(_SHORT[1])


def _hashes(span: Span, kind: int, device: torch.device) -> Tensor:
    """An int32 for each index of `span`: the finalizer of MurmurHash3. Rows and columns get other ones."""
    x = (torch.arange(span.start, span.start + span.length, device=device) * 2 + kind) * _LONG[1]
    for factor in _LONG:
        x = (x ^ (x >> 33 & 0x7FFFFFFF)) * factor
    return (x >> 32).to(torch.int32)


def _key(seed: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little", signed=True)
