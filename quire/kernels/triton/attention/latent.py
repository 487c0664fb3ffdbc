"""Triton attention over latents for steps in which every sequence computes one token: absorbed, so that a token's
latent is read once for all heads and no key or value is ever made.

A program takes a block of heads of one row and a part of its tokens; what the parts of a row leave is merged by a
second kernel. The products with `up` on both sides are batched matrix products of torch's.
"""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.triton.attention.narrow import halved, kept, scales, widened
from quire.kernels.triton.attention.shared import LOG2E
from quire.kernels.triton.launch import INTERPRETED, cdiv, device_of, next_power_of_2
from quire.ops.attention import KVPages
from quire.ops.latent import LatentSpec, latent_attention
from quire.ops.registry import provide
from quire.ops.step import StepInputs


# inner, out (HEADS, rows, RANK); q (rows, HEADS, PLAIN + TURNED); pools [pages, PAGE, RANK] and [pages, PAGE, TURNED];
# partial (SPLITS, HEADS, rows, RANK) and logs (SPLITS, HEADS, rows) float32.
@triton.jit(do_not_specialize=["rows", "table_stride"])
def _part(
    inner, q, latents, keys, table, table_stride, lengths, out, partial, logs, rows, scale, key_scale, out_scale,
    HEADS: tl.constexpr, RANK: tl.constexpr, RANK_P: tl.constexpr, PLAIN: tl.constexpr, TURNED: tl.constexpr,
    TURNED_P: tl.constexpr, BLOCK: tl.constexpr, PAGE: tl.constexpr, TILE: tl.constexpr, SPLITS: tl.constexpr,
    STAGES: tl.constexpr, WIDE: tl.constexpr, FORMAT: tl.constexpr, CONVERTS: tl.constexpr,
):  # fmt: skip
    row, block, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    head = block * BLOCK + tl.arange(0, BLOCK)
    r, d = tl.arange(0, RANK_P), tl.arange(0, TURNED_P)
    mine = (head < HEADS)[:, None]
    at = (head * rows + row).to(tl.int64)[:, None] * RANK + r[None, :]
    wide = halved(tl.load(inner + at, mask=mine & (r < RANK)[None, :], other=0.0), FORMAT)
    turned_at = (row.to(tl.int64) * HEADS + head)[:, None] * (PLAIN + TURNED) + PLAIN + d[None, :]
    turned = tl.load(q + turned_at, mask=mine & (d < TURNED)[None, :], other=0.0)
    turned = halved((turned.to(tl.float32) * key_scale).to(q.dtype.element_ty), FORMAT)
    DOT: tl.constexpr = tl.float32 if WIDE else wide.dtype
    length = tl.load(lengths + row)
    width = tl.cdiv(tl.cdiv(length, TILE), SPLITS) * TILE
    begin = split * width
    end = tl.minimum(begin + width, length)
    table += row.to(tl.int64) * table_stride
    acc = tl.zeros((BLOCK, RANK_P), tl.float32)
    top = tl.full((BLOCK,), float("-inf"), tl.float32)
    weight = tl.zeros((BLOCK,), tl.float32)
    for t in tl.range(begin, end, TILE, num_stages=STAGES):
        token = t + tl.arange(0, TILE)
        there = token < end
        if PAGE % TILE == 0:
            slot = tl.load(table + t // PAGE).to(tl.int64) * PAGE + t % PAGE + tl.arange(0, TILE)
        else:
            slot = tl.load(table + token // PAGE, mask=there, other=0).to(tl.int64) * PAGE + token % PAGE
        mask = there[:, None] & (r < RANK)[None, :]
        latent = widened(tl.load(latents + slot[:, None] * RANK + r[None, :], mask=mask, other=0.0), FORMAT, CONVERTS)
        mask = there[:, None] & (d < TURNED)[None, :]
        key = widened(tl.load(keys + slot[:, None] * TURNED + d[None, :], mask=mask, other=0.0), FORMAT, CONVERTS)
        scores = tl.dot(wide.to(DOT), tl.trans(latent.to(DOT)), input_precision="ieee")
        scores = tl.dot(turned.to(DOT), tl.trans(key.to(DOT)), scores, input_precision="ieee")
        # The first token of a tile is there, so the highest score is a number.
        scores = tl.where(there[None, :], scores * (scale * LOG2E), float("-inf"))
        highest = tl.maximum(top, tl.max(scores, 1))
        shrink = tl.exp2(top - highest)
        p = tl.exp2(scores - highest[:, None])
        weight = weight * shrink + tl.sum(p, 1)
        acc = tl.dot(p.to(wide.dtype).to(DOT), latent.to(DOT), acc * shrink[:, None], input_precision="ieee")
        top = highest
    total = tl.where(weight > 0, weight, 1.0)
    result = acc / total[:, None] * out_scale
    if SPLITS == 1:
        tl.store(out + at, result, mask=mine & (r < RANK)[None, :])
    else:
        place = ((split * HEADS + head) * rows + row).to(tl.int64)
        tl.store(partial + place[:, None] * RANK + r[None, :], result, mask=mine & (r < RANK)[None, :])
        tl.store(logs + place, top + tl.log2(total), mask=head < HEADS)


@triton.jit(do_not_specialize=["rows"])
def _merge(
    partial, logs, out, rows,
    HEADS: tl.constexpr, RANK: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Add up the parts of a row and head, some of their values; those of a row without tokens leave zeros."""
    line = tl.program_id(0).to(tl.int64)
    r = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    place = tl.arange(0, SPLITS) * (HEADS * rows) + line
    log = tl.load(logs + place)
    top = tl.max(log, 0)
    share = tl.exp2(log - tl.where(top == float("-inf"), 0.0, top))
    part = tl.load(partial + place[:, None] * RANK + r[None, :], mask=(r < RANK)[None, :], other=0.0)
    total = tl.sum(share, 0)
    acc = tl.sum(part * share[:, None], 0) / tl.where(total > 0, total, 1.0)
    tl.store(out + line * RANK + r, acc, mask=r < RANK)


@dataclass(frozen=True, slots=True)
class Shape:
    """How the work is cut.

    Attributes:
        block: heads of a program.
        tile: tokens read at once.
        stages, warps: of a program.
        resident: programs that a multiprocessor holds.
        most: parts that a row is read in.
    """

    block: int
    tile: int
    stages: int
    warps: int
    resident: int
    most: int = 64


MERGED = 4096
"""Values of all parts that one block adds up."""


def shape_of(heads: int, itemsize: int) -> Shape:
    """For so many heads on this rank, and values of so many bytes."""
    if itemsize > 2:
        return Shape(16, 16, 2, 4, 1)
    return Shape(16, 64, 2, 4, 2, 128) if heads <= 16 else Shape(64, 64, 2, 8, 2)


def splits_of(programs: int, shape: Shape, device: torch.device) -> int:
    """In how many parts each row is read, where one part each makes so many programs: as many as run at once.

    It does not depend on how long rows are, so that nothing compiles when they grow.
    """
    if INTERPRETED:
        return 2
    room = max(1, device_of(device).processors * shape.resident // programs)
    return min(1 << room.bit_length() - 1, shape.most)


def _refuses(spec: LatentSpec) -> str | None:
    if spec.step != "decode":
        return "only for steps in which every sequence computes one token"
    return f"latents of {spec.rank} values do not fit; at most 512 do" if spec.rank > 512 else None


@provide("triton", latent_attention, _refuses)
def triton_latent_attention(q: Tensor, up: Tensor, pages: KVPages, step: StepInputs, spec: LatentSpec) -> Tensor:
    """See `latent_attention`. Every sequence has one token."""
    rows, device = len(q), q.device
    if not rows:
        return q.new_empty(0, spec.heads * spec.value)
    table, q = step.groups[pages.group].page_table, q.contiguous()
    (latents, keys, form), (latent_scale, key_scale) = kept(pages), scales(pages)
    inner = torch.bmm(q[..., : spec.plain].transpose(0, 1), up[:, : spec.plain])
    shape = shape_of(spec.heads, q.itemsize)
    room = device_of(device).shared_bytes * 3 // 4
    while shape.tile > 16 and shape.tile * (spec.rank + spec.turned) * q.itemsize > room:
        shape = replace(shape, tile=shape.tile // 2)
    blocks = cdiv(spec.heads, shape.block)
    splits = splits_of(rows * blocks, shape, device)
    out = torch.empty_like(inner)
    partial = torch.empty(splits if splits > 1 else 0, *inner.shape, dtype=torch.float32, device=device)
    logs = torch.empty(partial.shape[:-1], dtype=torch.float32, device=device)
    _part[(rows, blocks, splits)](
        inner, q, latents, keys, table, table.stride(0), step.seq_lens, out, partial, logs, rows,
        spec.scale * latent_scale, key_scale / latent_scale, latent_scale,
        HEADS=spec.heads, RANK=spec.rank, RANK_P=max(16, next_power_of_2(spec.rank)),
        PLAIN=spec.plain, TURNED=spec.turned, TURNED_P=max(16, next_power_of_2(spec.turned)),
        BLOCK=shape.block, PAGE=pages.k.shape[1], TILE=shape.tile, SPLITS=splits,
        STAGES=device_of(device).stages(shape.stages), WIDE=INTERPRETED, **form, num_warps=shape.warps,
    )  # fmt: skip
    if splits > 1:
        block = min(next_power_of_2(spec.rank), MERGED // splits)
        _merge[(spec.heads * rows, cdiv(spec.rank, block))](
            partial, logs, out, rows, spec.heads, spec.rank, block, splits, num_warps=4
        )
    made = torch.bmm(out, up[:, spec.plain :].transpose(1, 2))
    return made.transpose(0, 1).reshape(rows, -1)
