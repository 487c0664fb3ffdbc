"""Attention over pages: writing new keys and values, attending to what is kept, and both with norm and rope in one
block.

Pools are `[pages, page_size, kv_heads, head_dim]`, one for keys and one for values, of a dtype of their own: see
`ops.narrow` for those of 8 bits. Nothing before a query's window and nothing beyond a sequence's length is ever read:
those slots may hold anything, NaN included.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from quire.messages.state import Retention
from quire.ops.narrow import narrowed, raw, widened
from quire.ops.norm import NormSpec, rms_norm
from quire.ops.registry import op
from quire.ops.rope import RopeSpec, rope
from quire.ops.samples import FLOATS, dtypes, normal, step_over
from quire.ops.step import StepInputs

StepClass = Literal["decode", "ragged", "eager", "prompts"]
"""Steps in which every sequence computes one token; in which most compute few; any steps; those of few sequences with
many tokens. A kernel that serves the third must be right for all."""

FEW = 64
"""Tokens a sequence, on average, below which attention is bound by reading pages rather than by arithmetic."""

MANY, PROMPTS = 2048, 64
"""Of the last class: the fewest tokens of a step, and most sequences."""


def class_of(step: StepInputs) -> StepClass:
    """The class of a step."""
    tokens, sequences = len(step.positions), len(step.seq_lens)
    if step.max_query == 1:
        return "decode"
    if tokens < FEW * sequences:
        return "ragged"
    return "prompts" if tokens >= MANY and sequences <= PROMPTS else "eager"


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """One layer's attention, as this rank computes it.

    Attributes:
        heads, kv_heads: of queries and of keys on this rank; heads is a multiple of kv_heads.
        scale: of the scores.
        window: a query sees itself and the window - 1 tokens before it; None sees everything.
        soft_cap: scores s become soft_cap * tanh(s / soft_cap); None leaves them.
        rotary_dim: values of each head that are rotated.
        norm_eps: epsilon of the RMS norm on every query and key head; None has no such norm.
        norm_dtype: of that norm's weights; None is `dtype`.
        dtype: of queries and of the result.
        kv_dtype: of the pools; None is `dtype`.
        step: for which steps a provider is wanted. Only `refuses` looks at it: each may serve the class it is good at.
        chunk: a query sees only tokens since the last multiple of this, itself included.
        sinks: whether each head has a score of its own, which takes its share of the weights and has no value.
        batch_invariant: a token's result must not depend on what else is computed in its step, to the last bit, nor on
            how its sequence was cut into steps.
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rotary_dim: int
    window: int | None = None
    soft_cap: float | None = None
    norm_eps: float | None = None
    dtype: str = "float32"
    device: str = "cpu"
    step: StepClass = "eager"
    kv_dtype: str | None = None
    norm_dtype: str | None = None
    chunk: int | None = None
    sinks: bool = False
    batch_invariant: bool = False

    @property
    def special(self) -> str | None:
        """What few providers have, in words; None where the spec asks for none of it."""
        if self.sinks:
            return "attention sinks"
        return None if self.chunk is None else "attention within chunks"

    @property
    def retention(self) -> Retention:
        """Which past tokens are needed."""
        return Retention(window=self.window, chunk=self.chunk)

    @property
    def parts(self) -> list[int]:
        """How many heads of a fused row are queries, keys and values."""
        return [self.heads, self.kv_heads, self.kv_heads]

    @property
    def kept(self) -> str:
        """The dtype of keys and values in pages."""
        return self.kv_dtype or self.dtype


@dataclass(frozen=True, slots=True)
class HeadWeights:
    """What prepares queries and keys.

    Attributes:
        table: (max_positions, rotary_dim) float32, cosines then sines.
        q_norm, k_norm: (head_dim,) weights of the head norms, if the spec has them.
        sinks: (heads,) scores of the sinks, if the spec has them.
    """

    table: Tensor
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    sinks: Tensor | None = None


@dataclass(frozen=True, slots=True)
class KVPages:
    """One layer's pools.

    Attributes:
        k, v: [pages, page_size, kv_heads, head_dim] each.
        group: whose page table finds them.
        k_scale, v_scale: what values stored in 8 bits are worth, times themselves; not for wider pools.
    """

    k: Tensor
    v: Tensor
    group: int = 0
    k_scale: float = 1.0
    v_scale: float = 1.0


def _write_samples() -> Iterator[tuple[AttentionSpec, dict[str, Any]]]:
    for dtype in FLOATS:
        spec = AttentionSpec(4, 2, 8, 1.0, 8, dtype=dtype)
        pages = KVPages(normal(dtype, 6, 4, 2, 8), normal(dtype, 6, 4, 2, 8, seed=1))
        step = step_over([1, 6], [3, 6], [[4], [2, 5]], 4)
        new = {"k": normal(dtype, 7, 2, 8, seed=2), "v": normal(dtype, 7, 2, 8, seed=3)}
        yield spec, {**new, "pages": pages, "step": step}
    for dtype, kept in itertools.product(FLOATS, (*NARROW, "float16")):
        spec = AttentionSpec(4, 2, 8, 1.0, 8, dtype=dtype, kv_dtype=kept)
        pages = KVPages(normal(kept, 6, 4, 2, 8), normal(kept, 6, 4, 2, 8, seed=1), 0, 0.25, 0.3)
        # Beyond what 8 bits hold, NaN among them.
        new = {name: normal(dtype, 7, 2, 8, seed=i).exp().pow(9 * i) * 1e-2 for i, name in enumerate("kv", 1)}
        new["k"][3, 1, 2], new["v"][2] = torch.nan, -new["v"][2]
        yield spec, {**new, "pages": pages, "step": step_over([1, 6], [3, 6], [[4], [2, 5]], 4)}


def _prepare_samples() -> Iterator[tuple[AttentionSpec, dict[str, Any]]]:
    # The scores' window, bound and scale are not its business; the cases without them are enough.
    for spec, inputs in _attend_samples():
        if spec.window is None and spec.special is None and spec.step == "eager":
            yield spec, inputs


def _attention_samples() -> Iterator[tuple[AttentionSpec, dict[str, Any]]]:
    for spec, inputs in _attend_samples():
        if spec.step == "decode":
            continue  # the same as the eager one
        step = inputs["step"]
        q = normal(spec.dtype, len(step.positions), spec.heads, spec.head_dim, seed=4)
        sinks = {"sinks": inputs["weights"].sinks} if spec.sinks else {}
        yield spec, {"q": q, "pages": inputs["pages"], "step": step, "spec": spec, **sinks}
        if spec.kv_dtype in NARROW:
            spec = replace(spec, dtype="bfloat16")
            yield spec, {"q": q.bfloat16(), "pages": inputs["pages"], "step": step, "spec": spec}


_STEPS = (
    # queries, lengths, page size: a whole prompt; decoding beside padding; chunks, decoding and a prompt; one token
    ([5], [5], 4),
    ([1, 1, 1, 1], [9, 1, 0, 17], 4),
    ([4, 1, 7, 3, 1], [12, 20, 7, 19, 8], 3),
    ([1], [1], 1),
)
NARROW = ("float8_e4m3fn", "float8_e5m2")
# The same, and which sequences begin with how many pages alike.
_ALIKE_STEPS = (
    (([1] * 6, [9, 17, 12, 10, 0, 13], 4), (([0, 2, 3], 2), ([5, 1], 3))),
    (([4, 1, 1, 7, 1], [12, 20, 9, 7, 21], 3), (([0, 1, 2, 4], 2),)),
)
_LONG_ALIKE_STEPS = ((([1] * 5, [300, 139, 200, 130, 129], 64), (([0, 1, 2], 2), ([4, 3], 1))),)
# Long enough to be cut into several parts.
_LONG_STEPS = (([1, 1], [300, 139], 64), ([70, 1, 2], [201, 150, 2], 64))


def _attend_samples() -> Iterator[tuple[AttentionSpec, dict[str, Any]]]:
    variants: tuple[dict[str, Any], ...] = (
        {},
        {"heads": 2},
        {"heads": 6, "window": 5},
        {"soft_cap": 3.0, "window": 4, "scale": 0.5},
        {"norm_eps": 1e-6, "rotary_dim": 4},
        {"norm_eps": 1e-6, "norm_dtype": "float32", "rotary_dim": 2},
        {"sinks": True},
        {"sinks": True, "window": 5, "soft_cap": 3.0},
        {"chunk": 5},
    )
    # What a query sees is shown in float32; in bfloat16 what is rounded.
    rounded = [variant for variant in variants if not variant or "norm_eps" in variant or "sinks" in variant]
    angle = torch.arange(301)[:, None] * torch.tensor([1.0, 0.3, 0.1, 0.03])
    for dtype in FLOATS:
        for variant in rounded if dtype == "bfloat16" else variants:
            if dtype == variant.get("norm_dtype"):
                continue
            base = {"heads": 4, "kv_heads": 2, "head_dim": 8, "scale": 8**-0.5, "rotary_dim": 8, "dtype": dtype}
            spec = AttentionSpec(**{**base, **variant})
            table = torch.cat([angle.cos()[:, : spec.rotary_dim // 2], angle.sin()[:, : spec.rotary_dim // 2]], -1)
            kind = spec.norm_dtype or dtype
            q_norm, k_norm = (normal(kind, 8, seed=s) if spec.norm_eps else None for s in (5, 6))
            weights = HeadWeights(table, q_norm, k_norm, normal(dtype, spec.heads, seed=7) if spec.sinks else None)
            # Edges of steps are shown once; what varies is shown where sequences of all kinds decode and are read.
            yield from _attend_steps(spec, weights, _STEPS if dtype == "float32" and not variant else _STEPS[1:3])
            if dtype == "float32":
                for step, alike in _ALIKE_STEPS:
                    yield from _attend_steps(spec, weights, (step,), alike)
    long_variants: tuple[dict[str, Any], ...] = ({}, {"window": 140, "soft_cap": 3.0})
    for variant in long_variants:
        spec = AttentionSpec(2, 1, 16, 0.25, 8, **variant)
        yield from _attend_steps(spec, HeadWeights(normal("float32", 301, 8)), _LONG_STEPS)
        for step, alike in _LONG_ALIKE_STEPS:
            yield from _attend_steps(spec, HeadWeights(normal("float32", 301, 8)), (step,), alike)
    # In float32, where all round to the same 8 bits: one that differs would change the result by more than is allowed.
    long_decode = ([1, 1], [300, 139], 64)
    for kept, steps in zip((*NARROW, "float16"), ((_STEPS[2], long_decode), _STEPS[1:2], _STEPS[2:3]), strict=True):
        spec = AttentionSpec(4, 2, 8, 8**-0.5, 8, window=9, norm_eps=1e-6, kv_dtype=kept)
        weights = HeadWeights(
            torch.cat([angle.cos(), angle.sin()], -1), *(normal("float32", 8, seed=s) for s in (5, 6))
        )
        yield from _attend_steps(spec, weights, steps)


_Alike = Sequence[tuple[list[int], int]]
"""Sequences that begin with the same pages, and how many pages."""


def _attend_steps(
    spec: AttentionSpec,
    weights: HeadWeights,
    steps: Iterable[tuple[list[int], list[int], int]],
    alike: _Alike = (),
) -> Iterator[tuple[AttentionSpec, dict[str, Any]]]:
    for queries, lengths, page_size in steps:
        classes: tuple[StepClass, ...] = ("eager", "decode") if max(queries) == 1 else ("eager",)
        for step_class in classes:
            wanted = replace(spec, step=step_class)
            step, pages = _poisoned(queries, lengths, page_size, spec, alike)
            qkv = normal(spec.dtype, sum(queries), sum(spec.parts) * spec.head_dim, seed=4)
            yield wanted, {"qkv": qkv, "weights": weights, "pages": pages, "step": step, "spec": wanted}


def _poisoned(
    queries: list[int], lengths: list[int], page_size: int, spec: AttentionSpec, alike: _Alike
) -> tuple[StepInputs, KVPages]:
    """A step over shuffled pages whose unused slots (other pages, tails, tokens before every window) are NaN."""
    counts = [-(-n // page_size) for n in lengths]
    order = (torch.randperm(sum(counts) + 2, generator=torch.Generator().manual_seed(7)) + 1).tolist()
    tables = [[order.pop() for _ in range(count)] for count in counts]
    for members, count in alike:
        for row in members:
            tables[row][:count] = tables[members[0]][:count]
    step = step_over(queries, lengths, tables, page_size, alike)
    k, v = (torch.full((sum(counts) + 3, page_size, spec.kv_heads, spec.head_dim), torch.nan) for _ in range(2))
    retention = spec.retention
    for i, (query, length) in enumerate(zip(queries, lengths, strict=True)):
        for t in range(retention.first_needed(max(0, length - query)), length):
            page, offset = tables[i][t // page_size], t % page_size
            k[page, offset] = normal("float32", spec.kv_heads, spec.head_dim, seed=100 * i + t)
            v[page, offset] = normal("float32", spec.kv_heads, spec.head_dim, seed=100 * i + t + 50)
    return step, KVPages(k.to(dtypes[spec.kept]), v.to(dtypes[spec.kept]), 0, 0.5, 1.7)


@op(samples=_write_samples, batch_invariant=True)
def write_pages(k: Tensor, v: Tensor, pages: KVPages, step: StepInputs) -> None:
    """Write the new tokens' keys and values, each (tokens, kv_heads, head_dim), to their slots of `pages`."""
    slots = step.groups[pages.group].slots
    for x, pool, scale in ((k, pages.k, pages.k_scale), (v, pages.v, pages.v_scale)):
        raw(pool).flatten(0, 1)[slots] = raw(narrowed(x, pool.dtype, scale))


@op(samples=_attention_samples, capturable=False)
def paged_attention(
    q: Tensor, pages: KVPages, step: StepInputs, spec: AttentionSpec, sinks: Tensor | None = None
) -> Tensor:
    """Causal attention of each sequence's new tokens to its pages, in float32.

    Args:
        q: (tokens, heads, head_dim); head h reads KV head h // (heads / kv_heads).
        sinks: (heads,), if the spec has them.

    Returns: (tokens, heads, head_dim) in the dtype of `q`. A sequence of length 0 (padding) gives zeros.
    """
    group = step.groups[pages.group]
    out = torch.zeros_like(q)
    bounds, lengths = step.query_start.tolist(), step.seq_lens.tolist()
    for i, length in enumerate(lengths):
        a, b = bounds[i], bounds[i + 1]
        if a == b or length == 0:
            continue
        first = spec.retention.first_needed(length - (b - a))
        kept = torch.arange(first, length, device=q.device)
        where = group.page_table[i, kept // group.page_size].long(), kept % group.page_size
        keys, values = (  # (kept, kv_heads, head_dim)
            widened(pool[where], torch.float32, scale)
            for pool, scale in ((pages.k, pages.k_scale), (pages.v, pages.v_scale))
        )
        out[a:b] = _attend_dense(q[a:b], keys, values, hidden(step.positions[a:b, None], kept, spec), spec, sinks)
    return out


def hidden(queries: Tensor, keys: Tensor, spec: AttentionSpec) -> Tensor:
    """Whether the query at one position does not see the key at another; both may be of any shapes that broadcast."""
    unseen = keys > queries
    if spec.window is not None:
        unseen = unseen | (keys <= queries - spec.window)
    return unseen if spec.chunk is None else unseen | (keys < queries // spec.chunk * spec.chunk)


def _attend_dense(
    q: Tensor, keys: Tensor, values: Tensor, unseen: Tensor, spec: AttentionSpec, sinks: Tensor | None
) -> Tensor:
    """One sequence. `unseen` (queries, keys)."""
    repeats = spec.heads // spec.kv_heads
    keys, values = (x.repeat_interleave(repeats, dim=1) for x in (keys, values))
    scores = torch.einsum("qhd,khd->hqk", q.float(), keys) * spec.scale
    if spec.soft_cap is not None:
        scores = spec.soft_cap * torch.tanh(scores / spec.soft_cap)
    scores = scores.masked_fill(unseen, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.float()[:, None, None].expand(-1, len(q), 1)], dim=-1)
    weights = scores.softmax(dim=-1)[..., : len(keys)]
    return torch.einsum("hqk,khd->qhd", weights, values).to(q.dtype)


@op(samples=_prepare_samples, batch_invariant=True)
def prepare(qkv: Tensor, weights: HeadWeights, pages: KVPages, step: StepInputs, spec: AttentionSpec) -> Tensor:
    """Norm and rotate the heads of queries and keys, and write the new keys and values to `pages`.

    Args:
        qkv: (tokens, (heads + 2 * kv_heads) * head_dim): queries, keys, values.

    Returns: the queries, (tokens, heads, head_dim). They and the keys are rounded once, after both: rounded in between,
    every hundredth key would take the neighbouring one of 8 bits.
    """
    q, k, v = torch.split(qkv.view(len(qkv), sum(spec.parts), spec.head_dim), spec.parts, dim=1)
    q, k = q.float(), k.float()
    if spec.norm_eps is not None:
        norm = NormSpec(spec.head_dim, spec.norm_eps, dtype="float32", device=spec.device)
        q, k = rms_norm(q, weights.q_norm, norm), rms_norm(k, weights.k_norm, norm)
    turn = RopeSpec(spec.head_dim, spec.rotary_dim, "float32", spec.device)
    q, k = (rope(x, step.positions, weights.table, turn).to(v.dtype) for x in (q, k))
    write_pages(k, v, pages, step)
    out: Tensor = q
    return out


@op(samples=_attend_samples, capturable=False)
def attend(qkv: Tensor, weights: HeadWeights, pages: KVPages, step: StepInputs, spec: AttentionSpec) -> Tensor:
    """The block between the two projections: `prepare`, then `paged_attention`.

    Args:
        qkv: (tokens, (heads + 2 * kv_heads) * head_dim): queries, keys, values.

    Returns: (tokens, heads * head_dim).
    """
    q = prepare(qkv, weights, pages, step, spec)
    out: Tensor = paged_attention(q, pages, step, spec, weights.sinks)
    return out.flatten(1)
