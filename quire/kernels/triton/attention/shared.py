"""What the attention kernels share: rotating heads, weighing scores, and tiles by the copy engine."""

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from quire.kernels.triton.launch import INTERPRETED, device_of
from quire.ops.attention import KVPages
from quire.ops.narrow import raw

LOG2E = tl.constexpr(1.4426950408889634)


def bulk_of(pages: KVPages, tile: int) -> tuple[TensorDescriptor | None, TensorDescriptor | None]:
    """The pools of keys and values as the copy engine sees them, for tiles of `tile` tokens of one head; or nothing."""
    slots, page_size, kv_heads, dim = pages.k.shape
    # The engine copies whole boxes, whose sides are powers of two, and of which a page must hold whole ones; products
    # want sides of 16.
    if page_size % tile or dim & (dim - 1) or dim < 16 or not _has_engine(pages.k.device):
        return None, None
    flat = (raw(pool).view(slots * page_size, kv_heads * dim) for pool in (pages.k, pages.v))
    k, v = (TensorDescriptor.from_tensor(pool, [tile, dim]) for pool in flat)
    return k, v


def _has_engine(device: torch.device) -> bool:
    return INTERPRETED or device_of(device).dependent


@triton.jit
def partner(d, ROTARY: tl.constexpr, DP: tl.constexpr):
    """The other value of the pair that value `d` of a head is rotated with; itself where it is not rotated."""
    half: tl.constexpr = ROTARY // 2
    if ROTARY == DP:
        # The compiler sees runs of neighbours in this.
        return (d + half) % DP
    return tl.where(d < half, d + half, tl.where(d < ROTARY, d - half, d))


@triton.jit
def rotated(x, y, d, angles, ROTARY: tl.constexpr):
    """Heads `x`, (n, DP) float32, whose partners are `y`, by the row of cosines and sines that `angles` points to."""
    half: tl.constexpr = ROTARY // 2
    cos = tl.load(angles + d % half, mask=d < ROTARY, other=1.0)
    sin = tl.load(angles + half + d % half, mask=d < ROTARY, other=0.0)
    return x * cos[None, :] + tl.where(d < half, -1.0, 1.0)[None, :] * y * sin[None, :]


@triton.jit
def bounded(scores, CAP: tl.constexpr):
    """CAP * tanh(scores / CAP), made of exp so that it is exact at both ends."""
    return CAP * (1.0 - 2.0 / (tl.exp(2.0 * scores / CAP) + 1.0))


@triton.jit
def weigh(scores, top, weight, scale, CAP: tl.constexpr):
    """What a tile's scores make of the highest score so far (in powers of 2) and the sum of weights.

    Returns the tile's weights, both of these, and the factor by which all before must shrink. `scale` is above 0.
    """
    if CAP > 0.0:
        # The bound of -inf, which nobody sees, is none.
        scores = tl.where(scores == float("-inf"), scores, bounded(scores * scale, CAP))
        factor = LOG2E
    else:
        factor = scale * LOG2E
    new_top = tl.maximum(top, tl.max(scores, 1) * factor)
    # A query that has seen nothing yet keeps -inf, from which nothing may be subtracted.
    base = tl.where(new_top == float("-inf"), 0.0, new_top)
    p = tl.exp2(scores * factor - base[:, None])
    shrink = tl.exp2(top - base)
    return p, new_top, weight * shrink + tl.sum(p, 1), shrink


@triton.jit
def first_seen(position, WINDOW: tl.constexpr, CHUNK: tl.constexpr):
    """From which token on queries at these positions see; no more than 0 where nothing bounds them."""
    first = 0 * position
    if WINDOW > 0:
        first = position - WINDOW + 1
    if CHUNK > 0:
        first = tl.maximum(first, position // CHUNK * CHUNK)
    return first
