"""Random weights for runs without a checkpoint.

The value of each entry is a hash of (seed, tensor name, index in the whole tensor), so it depends neither on the rank
that
makes it nor on how tensors are cut or fused: tensor-parallel 1 and 2 get the same model.
"""

import hashlib

import torch
from torch import Tensor

from quire.loading.recipe import Parametrised, Part, weights_of
from quire.parallel.mesh import Mesh

BLOCK_ITEMS = 1 << 22
# Multipliers of the 64-bit finalizer of MurmurHash3, as signed numbers.
_MIX_1 = 0xFF51AFD7ED558CCD - (1 << 64)
_MIX_2 = 0xC4CEB9FE1A85EC53 - (1 << 64)


def fill_dummy(model: Parametrised, seed: int, mesh: Mesh) -> None:
    """Give every parameter of `model` random values: matrices keep the scale of their input, norms are close to 1."""
    for weight in weights_of(model):
        row = 0
        for part in weight.recipe.parts:
            rows = part.taken(mesh.rank, mesh.size)[0]
            _fill_part(weight.data[row : row + rows], part, mesh, seed, weight.recipe.center)
            row += rows


def _fill_part(target: Tensor, part: Part, mesh: Mesh, seed: int, center: float) -> None:
    spans = part.spans(mesh.rank, mesh.size)
    for dim, span in enumerate(spans):
        target.narrow(dim, span.length, span.zeros).zero_()
        target = target.narrow(dim, 0, span.length)
    width = part.shape[1] if len(part.shape) == 2 else 1
    columns = torch.arange(width, device=target.device)
    if len(spans) == 2:
        columns = columns[spans[1].start : spans[1].start + spans[1].length]
    # Unit variance in gives unit variance out; vectors (norms, biases) scatter a little around their center.
    scale = width**-0.5 if len(part.shape) == 2 else 0.05
    step = max(1, BLOCK_ITEMS // max(1, columns.numel()))
    for begin in range(0, target.shape[0], step):
        count = min(step, target.shape[0] - begin)
        rows = torch.arange(begin, begin + count, device=target.device) + spans[0].start
        values = _uniform(rows[:, None] * width + columns, _key(seed, part.name)) * (scale * 3**0.5) + center
        target[begin : begin + count].copy_(values.view(target[begin : begin + count].shape))


def _uniform(index: Tensor, key: int) -> Tensor:
    """A float32 in [-1, 1) for each int64 in `index`: the finalizer of MurmurHash3 over index and key."""
    x = index * _MIX_2 ^ key
    x = (x ^ (x >> 33 & 0x7FFFFFFF)) * _MIX_1
    x = (x ^ (x >> 33 & 0x7FFFFFFF)) * _MIX_2
    x = x >> 40 & 0xFFFFFF
    return x.to(torch.float32) / (1 << 23) - 1.0


def _key(seed: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
