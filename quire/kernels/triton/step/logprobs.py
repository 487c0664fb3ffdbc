"""Log-probabilities in two kernels: what each part of the vocabulary holds, in order, and the parts merged."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.triton.launch import cdiv, next_power_of_2
from quire.kernels.triton.step.places import NOWHERE, id_at, logit_at, place_of
from quire.ops.logprobs import Logprobs, token_logprobs
from quire.ops.registry import provide

PART, WARPS = 2048, 4
"""Tokens that one block looks at, and its warps."""

MOST = 64
"""Largest number of probable tokens: they are found one after the other. More are left to the reference."""


@triton.jit
def _asked_of(wanted, line, top, with_wanted):
    """How many of the `top` most probable tokens a row asks for; negative if it asks for nothing."""
    if with_wanted > 0:
        top = tl.minimum(top, tl.load(wanted + line))
    return top


@triton.jit(do_not_specialize=["top", "with_wanted"])
def _describe_parts(
    logits,  # (n, vocab)
    chosen,  # (n,) int64
    wanted,  # (n,) int32
    tops,  # out (n, parts) float32, the part's maximum
    sums,  # out (n, parts) float32, sum of exp beyond it; NaN if the part has one
    ahead,  # out (n, parts) int32, tokens before the chosen one
    places,  # out (n, parts, top) int64, the part's most probable tokens in order
    vocab,
    top,
    with_wanted,  # 0: all rows ask for all
    PART: tl.constexpr,
):
    line = tl.program_id(0).to(tl.int64)
    asked = _asked_of(wanted, line, top, with_wanted)
    if asked < 0:
        return
    part = tl.program_id(1)
    at = part * PART + tl.arange(0, PART)
    there = at < vocab
    x = tl.load(logits + line * vocab + at, mask=there, other=-float("inf")).to(tl.float32)
    token = tl.load(chosen + line)
    own = tl.load(logits + line * vocab + token).to(tl.float32)
    entry = line * tl.num_programs(1) + part
    most = tl.max(x, 0)
    least = tl.where(most == -float("inf"), 0.0, most)
    tl.store(tops + entry, most)
    tl.store(sums + entry, tl.sum(tl.exp(x - least), 0))
    before = there & ((x > own) | ((x == own) & (at < token)))
    tl.store(ahead + entry, tl.sum(before.to(tl.int32), 0))
    place = tl.where(there, place_of(x, at), NOWHERE)
    for i in range(asked):
        best = tl.min(place, 0)
        tl.store(places + entry * top + i, best)
        place = tl.where(place == best, NOWHERE, place)


@triton.jit(do_not_specialize=["top", "parts", "with_wanted"])
def _merge(
    logits,  # (n, vocab)
    chosen,  # (n,) int64
    wanted,  # (n,) int32
    tops,  # (n, parts) float32
    sums,  # (n, parts) float32
    ahead,  # (n, parts) int32
    places,  # (n, parts, top) int64
    ids,  # out (n, 1 + top) int64
    values,  # out (n, 1 + top) float32
    ranks,  # out (n,) int64
    vocab,
    parts,
    top,
    with_wanted,
    WIDTH: tl.constexpr,
):
    line = tl.program_id(0).to(tl.int64)
    asked = _asked_of(wanted, line, top, with_wanted)
    if asked < 0:
        return
    part = tl.arange(0, WIDTH)
    there = part < parts
    entry = line * parts + part
    most = tl.load(tops + entry, mask=there, other=-float("inf"))
    best = tl.max(most, 0)
    total = tl.sum(tl.load(sums + entry, mask=there, other=0) * tl.exp(most - best), 0)
    rest = tl.log(total)
    token = tl.load(chosen + line)
    out = line * (1 + top)
    tl.store(ids + out, token)
    tl.store(values + out, tl.load(logits + line * vocab + token).to(tl.float32) - best - rest)
    before = tl.sum(tl.load(ahead + entry, mask=there, other=0).to(tl.int64), 0)
    tl.store(ranks + line, before + 1)
    # Each part is in order: the next token is the best of those that head their parts.
    head = tl.zeros([WIDTH], tl.int32)
    for i in range(asked):
        place = tl.load(places + entry * top + head, mask=there & (head < asked), other=NOWHERE)
        first = tl.min(place, 0)
        tl.store(ids + out + 1 + i, id_at(first).to(tl.int64))
        tl.store(values + out + 1 + i, logit_at(first) - best - rest)
        head += (place == first).to(tl.int32)


@provide("triton", token_logprobs, batch_invariant=True)
def triton_token_logprobs(logits: Tensor, chosen: Tensor, top: int, wanted: Tensor | None = None) -> Logprobs:
    """See `token_logprobs`."""
    count, vocab = logits.shape
    top = min(top, vocab)
    if top > MOST:
        described: Logprobs = token_logprobs(logits, chosen, top)
        return described
    logits, device = logits.contiguous(), logits.device
    parts = cdiv(vocab, PART)
    tops, sums = torch.empty(count, parts, device=device), torch.empty(count, parts, device=device)
    ahead = torch.empty(count, parts, dtype=torch.int32, device=device)
    places = torch.empty(count, parts, top, dtype=torch.int64, device=device)
    found = Logprobs(
        ids=torch.empty(count, 1 + top, dtype=torch.int64, device=device),
        values=torch.empty(count, 1 + top, device=device),
        ranks=torch.empty(count, dtype=torch.int64, device=device),
    )
    # What is not there stays unread.
    given = (logits, chosen, ahead if wanted is None else wanted)
    lists, sizes = (tops, sums, ahead, places), {"top": top, "with_wanted": int(wanted is not None)}
    _describe_parts[count, parts](*given, *lists, vocab, **sizes, PART=PART, num_warps=WARPS)
    outs = (found.ids, found.values, found.ranks)
    width = next_power_of_2(parts)
    _merge[(count,)](*given, *lists, *outs, vocab, parts, **sizes, WIDTH=width, num_warps=4)
    return found
