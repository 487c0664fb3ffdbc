"""Attention over pages by gathering: one batched call for all sequences that compute one token, one per longer chunk.

Query heads that share a KV head are stacked as rows of one small matrix, which on CPUs is many times faster than
`enable_gqa`. What depends on the step alone (indices, masks) is worked out once per step, not once per layer.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.ops.attention import AttentionSpec, HeadWeights, KVPages, attend, hidden, paged_attention, write_pages
from quire.ops.narrow import LARGEST, narrowed, raw, widened
from quire.ops.registry import provide
from quire.ops.step import StepInputs


@provide("torch_native", write_pages, batch_invariant=True)
def native_write_pages(k: Tensor, v: Tensor, pages: KVPages, step: StepInputs) -> None:
    """See `write_pages`."""
    slots = step.groups[pages.group].slots
    for x, pool, scale in ((k, pages.k, pages.k_scale), (v, pages.v, pages.v_scale)):
        raw(pool).flatten(0, 1).index_copy_(0, slots, raw(narrowed(x, pool.dtype, scale)))


@provide("torch_native", attend, capturable=False)
def native_attend(qkv: Tensor, weights: HeadWeights, pages: KVPages, step: StepInputs, spec: AttentionSpec) -> Tensor:
    """See `attend`. Queries and keys lie side by side in a row, so they are normed and rotated together."""
    heads = qkv.view(len(qkv), sum(spec.parts), spec.head_dim)
    both = spec.heads + spec.kv_heads
    qk = heads[:, :both].float()
    if spec.norm_eps is not None:
        qk = F.rms_norm(qk, (spec.head_dim,), None, spec.norm_eps) * _stacked_norms(weights, spec)
    qk = _rotate(qk, weights.table, step, spec).to(qkv.dtype)
    native_write_pages(qk[:, spec.heads :], heads[:, both:], pages, step)
    out: Tensor = native_paged_attention(qk[:, : spec.heads], pages, step, spec, weights.sinks)
    return out.flatten(1)


def _stacked_norms(weights: HeadWeights, spec: AttentionSpec) -> Tensor:
    """(heads + kv_heads, head_dim): the weight of each head's norm."""
    assert weights.q_norm is not None and weights.k_norm is not None, "the spec has head norms"
    return torch.cat([weights.q_norm.expand(spec.heads, -1), weights.k_norm.expand(spec.kv_heads, -1)])


def _rotate(x: Tensor, table: Tensor, step: StepInputs, spec: AttentionSpec) -> Tensor:
    def angles() -> tuple[Tensor, Tensor]:
        cos, sin = table[step.positions][:, None].chunk(2, dim=-1)
        return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)

    cos, sin = step.once(("angles", id(table)), angles)
    turned = x if spec.rotary_dim == spec.head_dim else x[..., : spec.rotary_dim]
    # Rolling by half swaps the two values of every pair.
    turned = torch.addcmul(turned * cos, turned.roll(spec.rotary_dim // 2, -1), sin)
    return turned if spec.rotary_dim == spec.head_dim else torch.cat([turned, x[..., spec.rotary_dim :]], dim=-1)


@provide("torch_native", paged_attention, capturable=False)
def native_paged_attention(
    q: Tensor, pages: KVPages, step: StepInputs, spec: AttentionSpec, sinks: Tensor | None = None
) -> Tensor:
    """See `paged_attention`."""
    if sinks is not None:
        sinks = sinks.float().view(spec.kv_heads, -1, 1)
    if step.max_query == 1:
        return _decode(q, None, pages, step, spec, sinks)
    bounds, lengths = step.once("bounds", lambda: (step.query_start.tolist(), step.seq_lens.tolist()))
    out = torch.empty_like(q)
    singles = [i for i in range(len(lengths)) if bounds[i + 1] - bounds[i] == 1]
    if singles:
        rows, tokens = step.once("singles", lambda: _index(q.device, singles, [bounds[i] for i in singles]))
        out[tokens] = _decode(q[tokens], rows, pages, step, spec, sinks)
    for i, length in enumerate(lengths):
        a, b = bounds[i], bounds[i + 1]
        if b - a > 1:
            out[a:b] = _chunk(q[a:b], (i, length), pages, step, spec, sinks) if length else 0
    return out


def _index(device: torch.device, *lists: list[int]) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(values, device=device) for values in lists)


@dataclass(frozen=True, slots=True)
class _Gather:
    """How the sequences that compute one token read their pages; the same for all layers of a cache group and window.

    Attributes:
        index: (n * kv_heads * tokens,) int64, rows of a pool seen as (slots * kv_heads, head_dim).
        buffer: (n * kv_heads * tokens, head_dim), for keys and then for values: fresh memory for each layer would cost
            more than the copy.
        wide: the same in the dtype of queries, where pages have another.
        mask: (n, 1, 1, tokens) float32, -inf where a row is shorter than the longest.
        padding: (n, 1, 1) bool, rows of length 0.
    """

    index: Tensor
    buffer: Tensor
    wide: Tensor | None
    mask: Tensor
    padding: Tensor

    def read(self, pool: Tensor, scale: float, n: int, kv_heads: int) -> Tensor:
        """(n, kv_heads, tokens, head_dim); valid until the next read."""
        torch.index_select(raw(pool).view(-1, pool.shape[-1]), 0, self.index, out=self.buffer)
        found = self.buffer if self.wide is None else _widen(self.buffer, pool.dtype, scale, self.wide)
        return found.view(n, kv_heads, -1, pool.shape[-1])


def _widen(kept: Tensor, stored: torch.dtype, scale: float, out: Tensor) -> Tensor:
    """What `kept` (bytes, where `stored` has 8 bits) is worth, in `out`."""
    if stored not in LARGEST:
        return out.copy_(kept)
    # Looked up: four times faster than torch's conversion on a CPU.
    worth = torch.arange(256, dtype=torch.uint8, device=out.device).view(stored)
    torch.index_select(widened(worth, out.dtype, scale), 0, kept.flatten().int(), out=out.view(-1))
    return out


def _decode(
    q: Tensor, rows: Tensor | None, pages: KVPages, step: StepInputs, spec: AttentionSpec, sinks: Tensor | None
) -> Tensor:
    """One query per sequence, for the sequences `rows` (None: all). q (n, heads, head_dim)."""
    shared = _shared(rows, pages, step, spec)
    key = ("gather", pages.group, spec.window, spec.chunk, spec.kv_heads, spec.head_dim, rows is None)
    gather = step.once(key, lambda: _gather(rows, pages, step, spec, q.dtype, shared.tokens if shared else None))
    n = len(q)
    # The query heads of a KV head are the rows of one product.
    heads = q.view(n, spec.kv_heads, -1, spec.head_dim)
    keys = gather.read(pages.k, pages.k_scale, n, spec.kv_heads)
    scores = _capped(torch.matmul(heads, keys.transpose(-1, -2)).float(), spec).add_(gather.mask)
    log = scores.logsumexp(dim=-1, keepdim=True) if shared or sinks is not None else None
    if log is not None and sinks is not None:
        log = torch.logaddexp(log, sinks)
    weights = (scores.softmax(dim=-1) if log is None else scores.sub_(log).exp_()).to(q.dtype)
    out = torch.matmul(weights, gather.read(pages.v, pages.v_scale, n, spec.kv_heads))
    if shared is not None and log is not None:
        for beginning in shared.beginnings:
            _merge(out, log, beginning, _attend_once(heads[beginning.members], beginning, pages, spec))
    return out.view(n, spec.heads, spec.head_dim).masked_fill_(gather.padding, 0)


@dataclass(frozen=True, slots=True)
class _Beginning:
    """Sequences that begin with the same pages: members (c,) int64, pages (count,) int32."""

    members: Tensor
    pages: Tensor


@dataclass(frozen=True, slots=True)
class _Shared:
    """All that begin alike, and for each of n sequences how many tokens it needs not read itself, (n,) int64."""

    beginnings: list[_Beginning]
    tokens: Tensor


def _shared(rows: Tensor | None, pages: KVPages, step: StepInputs, spec: AttentionSpec) -> _Shared | None:
    """What the sequences `rows` have in common; None if nothing, or if a window hides the beginning from some."""
    group = step.groups[pages.group]
    if group.shared is None or spec.window is not None or spec.chunk is not None:
        return None
    known = group.shared

    def find() -> _Shared | None:
        number, tokens = known.number, known.tokens.long()
        table = group.page_table
        if rows is not None:
            number, tokens, table = number[rows], tokens[rows], table[rows]
        members: dict[int, list[int]] = {}
        for i, n in enumerate(number.tolist()):
            if n >= 0:
                members.setdefault(n, []).append(i)
        found = []
        for alike in members.values():
            first, count = alike[0], int(tokens[alike[0]]) // group.page_size
            found.append(_Beginning(torch.tensor(alike, device=table.device), table[first, :count]))
        return _Shared(found, tokens) if found else None

    return step.once(("shared", pages.group, rows is None), find)


def _attend_once(q: Tensor, beginning: _Beginning, pages: KVPages, spec: AttentionSpec) -> tuple[Tensor, Tensor]:
    """Attention of (c, kv_heads, group, head_dim) to the pages that all c sequences begin with.

    Returns the result, and the logarithm of the sum of its weights, (c, kv_heads, group, 1) float32.
    """
    c, kv_heads, group, dim = q.shape
    k, v = (  # (kv_heads, tokens, head_dim)
        _pages(pool, beginning.pages, scale, q.dtype).flatten(0, 1).transpose(0, 1)
        for pool, scale in ((pages.k, pages.k_scale), (pages.v, pages.v_scale))
    )
    lines = q.transpose(0, 1).reshape(kv_heads, c * group, dim)
    scores = _capped(torch.matmul(lines, k.transpose(-1, -2)).float(), spec)
    log = scores.logsumexp(dim=-1, keepdim=True)
    out = torch.matmul(scores.sub_(log).exp_().to(q.dtype), v)
    return tuple(x.view(kv_heads, c, group, -1).transpose(0, 1) for x in (out, log))  # type: ignore[return-value]


def _merge(out: Tensor, log: Tensor, beginning: _Beginning, other: tuple[Tensor, Tensor]) -> None:
    """Add what its members have in common to their own results `out` (n, kv_heads, group, head_dim), in place."""
    own = log[beginning.members]
    total = torch.logaddexp(own, other[1])
    parts = out[beginning.members].float() * (own - total).exp() + other[0].float() * (other[1] - total).exp()
    out.index_copy_(0, beginning.members, parts.to(out.dtype))


def _gather(
    rows: Tensor | None, pages: KVPages, step: StepInputs, spec: AttentionSpec, dtype: torch.dtype, skip: Tensor | None
) -> _Gather:
    """`skip` (n,) int64: tokens at the start of each sequence that are read otherwise."""
    group = step.groups[pages.group]
    table, size, lengths = group.page_table.long(), group.page_size, step.seq_lens.long()
    if rows is not None:
        table, lengths = table[rows], lengths[rows]
    lengths = lengths[:, None]
    if spec.chunk is not None:
        count = min(step.max_seq, spec.chunk)
        first = (lengths - 1).clamp(min=0) // spec.chunk * spec.chunk
    elif skip is None:
        count = step.max_seq if spec.window is None else min(step.max_seq, spec.window)
        first = (lengths - count).clamp(min=0)
    else:
        first = skip[:, None]
        count = int((lengths - first).max())
    wanted = first + torch.arange(count, device=table.device)
    mask = torch.zeros(wanted.shape, device=table.device).masked_fill_(wanted >= lengths, float("-inf"))
    # Short rows read their own last token again: what lies beyond may be NaN, which no weight of 0 can undo.
    position = torch.minimum(wanted, lengths - 1).clamp(min=0)
    slots = table.gather(1, position // size) * size + position % size
    index = slots[:, None] * spec.kv_heads + torch.arange(spec.kv_heads, device=table.device)[:, None]
    buffer = torch.empty(index.numel(), spec.head_dim, dtype=raw(pages.k).dtype, device=table.device)
    wide = None if pages.k.dtype == dtype else torch.empty_like(buffer, dtype=dtype)
    return _Gather(index.flatten(), buffer, wide, mask[:, None, None], (lengths == 0)[:, :, None])


def _chunk(
    q: Tensor, which: tuple[int, int], pages: KVPages, step: StepInputs, spec: AttentionSpec, sinks: Tensor | None
) -> Tensor:
    """Several queries of a sequence: `which`, and how many tokens it has with them. q (queries, heads, head_dim)."""
    i, length = which
    size, n = step.groups[pages.group].page_size, len(q)
    start = spec.retention.first_needed(length - n)
    index = step.groups[pages.group].page_table[i, start // size : -(-length // size)]
    skip = start % size
    k, v = (  # (tokens, kv_heads, head_dim)
        _pages(pool, index, scale, q.dtype).flatten(0, 1)[skip : skip + length - start]
        for pool, scale in ((pages.k, pages.k_scale), (pages.v, pages.v_scale))
    )
    key = ("mask", i, spec.window, spec.chunk)
    mask = step.once(key, lambda: _chunk_mask(n, start, length, spec, q.device))
    # KV heads take the place of the batch; the query heads that share one see it through a stride of 0.
    groups = spec.heads // spec.kv_heads
    q = q.view(n, spec.kv_heads, groups, spec.head_dim).permute(1, 2, 0, 3)
    k, v = (x.permute(1, 0, 2)[:, None].expand(-1, groups, -1, -1) for x in (k, v))
    if q.is_cuda and q.dtype == torch.float32:
        # The kernel that torch 2.11 takes here spoils the last of 129 queries where a stride is 0.
        k, v = k.contiguous(), v.contiguous()
    return _dense(q, k, v, mask, spec, sinks).permute(2, 0, 1, 3).reshape(n, spec.heads, spec.head_dim)


def _pages(pool: Tensor, index: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """The pages `index` of a pool, in `dtype`."""
    found = raw(pool).index_select(0, index)
    return found if pool.dtype == dtype else _widen(found, pool.dtype, scale, torch.empty_like(found, dtype=dtype))


def _chunk_mask(queries: int, start: int, length: int, spec: AttentionSpec, device: torch.device) -> Tensor | None:
    """(queries, tokens) bool, or None where causality from the first token on says it all."""
    if queries == length and all(reach is None or reach >= length for reach in (spec.window, spec.chunk)):
        return None
    positions = torch.arange(start, length, device=device)
    return ~hidden(positions[length - queries - start :, None], positions, spec)


def _dense(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, spec: AttentionSpec, sinks: Tensor | None) -> Tensor:
    """Attention of (a, b, queries, head_dim) to (a, b, tokens, head_dim); `seen` None is causal. sinks (a, b, 1)."""
    if spec.soft_cap is None and sinks is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=seen is None, scale=spec.scale)
    scores = _capped(torch.matmul(q, k.transpose(-1, -2)).float(), spec)
    if seen is None:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    scores = scores.masked_fill_(~seen, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks[..., None].expand(-1, -1, scores.shape[2], 1)], dim=-1)
    return torch.matmul(scores.softmax(dim=-1)[..., : k.shape[-2]].to(q.dtype), v)


def _capped(scores: Tensor, spec: AttentionSpec) -> Tensor:
    """Scores scaled and, where the spec says so, bounded; in place."""
    if spec.soft_cap is None:
        return scores.mul_(spec.scale)
    return scores.mul_(spec.scale / spec.soft_cap).tanh_().mul_(spec.soft_cap)
