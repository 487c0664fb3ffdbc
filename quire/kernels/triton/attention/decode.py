"""Triton attention for steps in which every sequence computes one token, with norm, rope and page write before it.

Rows are cut into splits, listed once per step (`listing`), so that one recorded graph serves every length. How, and
which kernels take them, depends on the size of the batch: in small ones one does it all (`splits`), in large ones
others do what comes before and after (`runs`).
"""

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quire.kernels.triton import tuned
from quire.kernels.triton.attention import cascade, listing, runs, splits
from quire.kernels.triton.attention.heads import triton_prepare
from quire.kernels.triton.attention.narrow import kept, scales
from quire.kernels.triton.launch import INTERPRETED, device_of, next_power_of_2
from quire.ops.attention import AttentionSpec, HeadWeights, KVPages, attend
from quire.ops.registry import provide
from quire.ops.step import GroupInputs, StepInputs


@dataclass(frozen=True, slots=True)
class Shape:
    """How the work is cut.

    Attributes:
        early: a program takes one split and fetches its first tile before it waits, instead of a run of splits.
        splits: of one row, where programs take one each; bounds the memory for what is left to be merged.
        tile: tokens read at once.
        stages: of the loop over tiles, one of which fetches where they are.
        warps: of a program.
        resident: programs for each multiprocessor.
        registers: most of a thread, so that as many programs fit; only NVIDIA's compiler is told.
    """

    early: bool = False
    splits: int = 32
    tile: int = 64
    stages: int = 5
    warps: int = 4
    resident: int = 2
    registers: int = 255


@functools.cache
def shape_of(pairs: int, group: int, size: tuple[int, int], shares: bool, device: torch.device) -> Shape:
    """For `pairs` of a row and a KV head and `group` query heads each.

    Args:
        size: values of a head (a power of two), and bytes of a value: 1 where pages keep 8 bits and queries 16, else
            the widest of both.
        shares: rows begin with pages that are read for all of them at once.
    """
    width = size[0] * size[1]
    facts = {"pairs": pairs, "group": group, "bytes": width, "itemsize": size[1], "shares": int(shares)}
    found = Shape(**tuned.choose("decode attention", device, facts))
    # Files speak of heads of 256 bytes. The interpreter runs programs one after another.
    tile = max(16, found.tile * 256 // max(width, 256))
    return replace(found, tile=tile, splits=min(found.splits, 2) if INTERPRETED else found.splits)


def _refuses(spec: AttentionSpec) -> str | None:
    if spec.step != "decode":
        return "only for steps in which every sequence computes one token"
    if spec.head_dim > 256:
        return f"heads of {spec.head_dim} values do not fit; at most 256 do"
    return None


def _shares(where: GroupInputs, spec: AttentionSpec) -> bool:
    """Whether rows begin with pages that are read for all of them at once: what windows and chunks drop is no one's."""
    return where.shared is not None and spec.window is None and spec.chunk is None


@provide("triton", attend, _refuses)
def triton_attend(qkv: Tensor, weights: HeadWeights, pages: KVPages, step: StepInputs, spec: AttentionSpec) -> Tensor:
    """See `attend`. Every sequence has one token."""
    rows, where = qkv.shape[0], step.groups[pages.group]
    out = torch.empty(rows, spec.heads * spec.head_dim, dtype=qkv.dtype, device=qkv.device)
    if not rows:
        return out
    device, dim = device_of(qkv.device), next_power_of_2(spec.head_dim)
    width = max(dim, 16 if spec.kept == spec.dtype else 32)
    shares = _shares(where, spec)
    pairs, group = rows * spec.kv_heads, spec.heads // spec.kv_heads
    itemsize = pages.k.itemsize if qkv.itemsize == 2 else max(qkv.itemsize, pages.k.itemsize)
    shape = shape_of(pairs, group, (dim, itemsize), shares, qkv.device)
    if shares:
        # Parts that others leave are merged by a kernel of its own.
        shape = replace(shape, early=False)
    count = 0 if shape.early else max(1, shape.resident * device.processors // spec.kv_heads)
    work, shared = step.once(
        ("splits", pages.group, spec.window, spec.chunk, spec.heads, spec.kv_heads, spec.head_dim),
        lambda: _list(qkv, step, where, spec, shape, count),
    )
    common = {"HEADS": spec.heads, "KV_HEADS": spec.kv_heads, "D": spec.head_dim, "DP": width}
    common |= {"GROUP": spec.heads // spec.kv_heads, "num_warps": shape.warps, **device.options}
    (k_pool, v_pool, form), (k_scale, v_scale) = kept(pages), scales(pages)
    constants = common | form | _constants(spec, shape, work, shares)
    group = next_power_of_2(common["GROUP"])
    merging = {"GROUP_P": group, "AT_ONCE": max(1, min(16, 8192 // (group * dim)))}
    v_pairs = v_pool.view(torch.uint16) if form["FORMAT"] else None
    sinks = weights.sinks if spec.sinks else None
    listed = work.splits, work.total if shape.early else work.runs, work.tiles, work.places
    parts, numbers = (work.partial, work.logs), (spec.scale * k_scale, v_scale)
    if shape.early:
        given = qkv.contiguous(), out, k_pool, v_pool, v_pairs, where.slots, weights.table
        more = *numbers, 1.0 / k_scale, 1.0 / v_scale, spec.norm_eps or 0.0
        turning = {"NORM": spec.norm_eps is not None, "ROTARY": spec.rotary_dim, "ROWS": max(group, 16)}
        splits.early[(rows * shape.splits * spec.kv_heads,)](
            *given, weights.q_norm, weights.k_norm, sinks, *listed, work.arrived, *parts, *more,
            **constants, **turning, **merging,
        )  # fmt: skip
        return out
    q = triton_prepare(qkv, weights, pages, step, spec)
    if shared is not None:
        cascade.attend_shared(shared, work, q, pages, step, spec)
    # Matrix units of other makers take 16 columns at least.
    columns = max(group, 8 if device.nvidia else 16)
    runs.run_of_splits[(count * spec.kv_heads,)](
        q, out, k_pool, v_pool, v_pairs, sinks, *listed, *parts, *numbers, **constants, COLUMNS=columns
    )
    runs.merge_rows[(len(work.firsts), spec.kv_heads)](out, work.splits, work.firsts, *parts, **common, **merging)
    return out


def _constants(spec: AttentionSpec, shape: Shape, work: listing.Work, shares: bool) -> dict[str, object]:
    """What the kernels that read pages are made for, beside the heads."""
    device = device_of(work.splits.device)
    made: dict[str, object] = {
        "TILE": shape.tile,
        "PIECES": work.places.shape[1],
        "STAGES": device.stages(shape.stages),
    }
    # Whether what a row reads may begin within a tile; what it shares are whole pages.
    begins = spec.window is not None or spec.chunk is not None or (shares and work.places.shape[1] > 1)
    made |= {"BEGINS": begins, "CAP": spec.soft_cap or 0.0, "WIDE": INTERPRETED}
    return made | ({"maxnreg": shape.registers} if device.nvidia else {})


def _list(
    qkv: Tensor, step: StepInputs, where: GroupInputs, spec: AttentionSpec, shape: Shape, count: int
) -> tuple[listing.Work, cascade.Beginnings | None]:
    cut = listing.Cut(shape.tile, shape.splits, count)
    shared = None
    if where.shared is not None and _shares(where, spec):
        shared = cascade.listed(where.shared, spec, qkv.dtype.itemsize)
    return listing.make(step.seq_lens, where, cut, spec, shared.elsewhere if shared else None), shared
