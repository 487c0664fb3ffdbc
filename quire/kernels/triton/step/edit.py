"""Bias, penalties and masks in one pass over the logits, and a look at each row's bans."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.triton.launch import cdiv
from quire.ops.draw import FREQUENCY, PRESENCE, REPETITION, RowTable
from quire.ops.edit import ANY_TOKEN, IN_PROMPT, EditTables, Slots, edit_logits
from quire.ops.registry import provide

PART, WARPS = 2048, 4
"""Tokens that one block edits, and its warps."""

ENTRIES = 32
"""Bans of a row that are looked at together."""

_REPETITION, _FREQUENCY, _PRESENCE = tl.constexpr(REPETITION), tl.constexpr(FREQUENCY), tl.constexpr(PRESENCE)
_IN_PROMPT, _ANY_TOKEN = tl.constexpr(IN_PROMPT), tl.constexpr(ANY_TOKEN)
_LARGEST = tl.constexpr(torch.finfo(torch.float32).max)


@triton.jit(do_not_specialize=["words", "with_offsets", "with_counts", "with_masks"])
def _edit(
    logits,  # (n, vocab)
    rows,  # (n,) int64
    numbers,  # (max_rows, columns) float32
    offsets,  # (slots, vocab) float32
    offset_of,  # (max_rows,) int64
    counts,  # (slots, vocab) int32
    count_of,  # (max_rows,) int64
    masks,  # (max_rows, words) int32
    edited,  # out (n, vocab) float32
    vocab,
    words,
    with_offsets,  # 0: there are none
    with_counts,
    with_masks,
    COLUMNS: tl.constexpr,
    PART: tl.constexpr,
):
    line = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + line)
    at = tl.program_id(1) * PART + tl.arange(0, PART)
    there = at < vocab
    x = tl.load(logits + line * vocab + at, mask=there, other=0).to(tl.float32)
    if with_offsets > 0:
        slot = tl.load(offset_of + row)
        if slot > 0:
            x += tl.load(offsets + slot * vocab + at, mask=there, other=0)
    if with_counts > 0:
        slot = tl.load(count_of + row)
        if slot > 0:
            count = tl.load(counts + slot * vocab + at, mask=there, other=0)
            penalty = tl.load(numbers + row * COLUMNS + _REPETITION)
            x = tl.where(count > 0, tl.where(x > 0, tl.div_rn(x, penalty), x * penalty), x)
            generated = (count & (_IN_PROMPT - 1)).to(tl.float32)
            x -= tl.load(numbers + row * COLUMNS + _FREQUENCY) * generated
            x -= tl.load(numbers + row * COLUMNS + _PRESENCE) * tl.minimum(generated, 1.0)
    x = tl.where(x > _LARGEST, _LARGEST, x)
    if with_masks > 0:
        word = tl.load(masks + row * words + at // 32, mask=there, other=0)
        # NaN stays, as where -inf is added.
        x = tl.where(((word >> (at % 32)) & 1) > 0, x, x - float("inf"))
    tl.store(edited + line * vocab + at, x, mask=there)


@triton.jit(do_not_specialize=["max_len", "width"])
def _ban(
    rows,  # (n,) int64
    history,  # (max_rows, max_len) int32
    known,  # (max_rows,) int32
    first,  # (max_rows + 1,) int64
    token,  # (e,) int64, as `until` and `length`
    until,
    length,
    prefix,  # (e, width) int64
    edited,  # (n, vocab) float32, written where a token is banned
    vocab,
    max_len,
    width,
    ENTRIES: tl.constexpr,
):
    line = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + line)
    have = tl.load(known + row).to(tl.int64)
    end = tl.load(first + row + 1)
    for start in range(tl.load(first + row), end, ENTRIES):
        at = start + tl.arange(0, ENTRIES)
        there = at < end
        active = there & (have < tl.load(until + at, mask=there, other=0))
        active &= have >= tl.load(length + at, mask=there, other=0)
        for column in range(width):
            wanted = tl.load(prefix + at * width + column, mask=there, other=_ANY_TOKEN)
            found = tl.load(history + row * max_len + tl.maximum(have - width + column, 0))
            active &= (wanted == _ANY_TOKEN) | (wanted == found)
        banned = tl.load(token + at, mask=there, other=0)
        tl.store(edited + line * vocab + banned, -float("inf"), mask=active)


@provide("triton", edit_logits, batch_invariant=True)
def triton_edit_logits(
    logits: Tensor, rows: Tensor, table: RowTable, tables: EditTables, history: Tensor, known: Tensor
) -> Tensor:
    """See `edit_logits`."""
    logits = logits.contiguous()
    count, vocab = logits.shape
    edited = torch.empty(count, vocab, dtype=torch.float32, device=logits.device)
    # What is not there stays unread.
    offsets, counts = tables.offsets or Slots(edited, rows), tables.counts or Slots(known, rows)
    masks = known if tables.masks is None else tables.masks
    _edit[count, cdiv(vocab, PART)](
        *(logits, rows, table.numbers, offsets.table, offsets.of_row, counts.table, counts.of_row, masks),
        *(edited, vocab, masks.shape[-1]),
        *(int(tables.offsets is not None), int(tables.counts is not None), int(tables.masks is not None)),
        COLUMNS=table.numbers.shape[1],
        PART=PART,
        num_warps=WARPS,
        enable_fp_fusion=False,  # rounded as torch rounds: a product first, then the difference
    )
    bans = tables.bans
    if bans is not None and len(bans.token):
        entries = (bans.first, bans.token, bans.until, bans.length, bans.prefix)
        sizes = (vocab, history.shape[1], bans.prefix.shape[1])
        _ban[(count,)](rows, history, known, *entries, edited, *sizes, ENTRIES=ENTRIES, num_warps=1)
    return edited
