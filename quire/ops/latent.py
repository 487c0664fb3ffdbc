"""Attention over compressed keys and values: every token keeps one latent vector and one rotated key for all heads.

Pages are those of `ops.attention` with one head: `k` holds latents, `v` the rotated keys, [pages, page_size, 1, ...]. A
head's keys and values are products of the latents (expanded), or its queries and results are (absorbed): the same sums
in another order. DeepSeek-AI, "DeepSeek-V2", 2024, section 2.1.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quire.ops.attention import KVPages, StepClass, write_pages
from quire.ops.narrow import widened
from quire.ops.norm import NormSpec, rms_norm
from quire.ops.registry import DEFAULT_TOLERANCE, op
from quire.ops.rope import RopeSpec, rope
from quire.ops.samples import FLOATS, dtypes, normal, step_over
from quire.ops.step import StepInputs


@dataclass(frozen=True, slots=True)
class LatentSpec:
    """One layer's attention, as this rank computes it.

    Attributes:
        heads: of queries, on this rank.
        rank: values of a latent.
        plain, turned: values of a query or key that are not rotated and, after those, that are.
        value: values of a head's result.
        scale: of the scores.
        norm_eps: epsilon of the RMS norm on latents.
        neighbours: whether values 2i and 2i + 1 are rotated together, and not i and i + half.
        dtype: of queries and of the result.
        kv_dtype: of the pools; None is `dtype`.
        step: for which steps a provider is wanted, as of `AttentionSpec`.
    """

    heads: int
    rank: int
    plain: int
    turned: int
    value: int
    scale: float
    norm_eps: float
    neighbours: bool
    dtype: str = "float32"
    device: str = "cpu"
    kv_dtype: str | None = None
    step: StepClass = "eager"


@dataclass(frozen=True, slots=True)
class LatentWeights:
    """What prepares queries and latents.

    Attributes:
        table: (max_positions, turned) float32, cosines then sines.
        norm: (rank,), of the norm on latents.
    """

    table: Tensor
    norm: Tensor


_STEPS = (
    # queries, lengths, page size
    ([5], [5], 4),
    ([1, 1, 1, 1], [9, 1, 0, 17], 4),
    ([4, 1, 7, 3, 1], [12, 20, 7, 19, 8], 3),
)


def _samples() -> Iterator[tuple[LatentSpec, dict[str, Any]]]:
    table = normal("float32", 21, 4, seed=8)
    for dtype in FLOATS:
        for queries, lengths, page_size in _STEPS:
            for kept in (None, "float8_e4m3fn") if dtype == "float32" else (None,):
                spec = LatentSpec(3, 16, 8, 4, 6, 0.3, 1e-6, page_size == 4, dtype, kv_dtype=kept)
                step, pages = _poisoned((queries, lengths), page_size, spec)
                tokens = sum(queries)
                yield (
                    spec,
                    {
                        "q": normal(dtype, tokens, spec.heads * (spec.plain + spec.turned)),
                        "kv": normal(dtype, tokens, spec.rank + spec.turned, seed=1),
                        "weights": LatentWeights(table, normal(dtype, spec.rank, seed=2)),
                        "pages": pages,
                        "step": step,
                        "spec": spec,
                    },
                )


def _attention_samples() -> Iterator[tuple[LatentSpec, dict[str, Any]]]:
    for spec, inputs in _samples():
        q = inputs["q"].view(-1, spec.heads, spec.plain + spec.turned)
        up = normal(spec.dtype, spec.heads, spec.plain + spec.value, spec.rank, seed=3) * spec.rank**-0.5
        classes: tuple[StepClass, ...] = ("eager", "decode") if inputs["step"].max_query == 1 else ("eager",)
        for step_class in classes:
            wanted = replace(spec, step=step_class)
            yield wanted, {"q": q, "up": up, "pages": inputs["pages"], "step": inputs["step"], "spec": wanted}


def _poisoned(counts: tuple[list[int], list[int]], page_size: int, spec: LatentSpec) -> tuple[StepInputs, KVPages]:
    """A step over shuffled pages whose unused slots are NaN. `counts`: queries and lengths."""
    queries, lengths = counts
    needed = [-(-n // page_size) for n in lengths]
    order = (torch.randperm(sum(needed) + 2, generator=torch.Generator().manual_seed(7)) + 1).tolist()
    tables = [[order.pop() for _ in range(count)] for count in needed]
    pools = [torch.full((sum(needed) + 3, page_size, 1, size), torch.nan) for size in (spec.rank, spec.turned)]
    for i, length in enumerate(lengths):
        for t in range(length):
            for seed, pool in enumerate(pools):
                row = normal("float32", 1, pool.shape[-1], seed=100 * i + t + 50 * seed)
                pool[tables[i][t // page_size], t % page_size] = row
    kept = dtypes[spec.kv_dtype or spec.dtype]
    return step_over(queries, lengths, tables, page_size), KVPages(pools[0].to(kept), pools[1].to(kept), 0, 0.5, 1.7)


def turn(x: Tensor, table: Tensor, step: StepInputs, spec: LatentSpec) -> Tensor:
    """Rotate (tokens, heads, turned) by position. Neighbours come out apart, firsts before seconds, in all alike."""
    if spec.neighbours:
        x = torch.cat([x[..., ::2], x[..., 1::2]], dim=-1)
    out: Tensor = rope(x, step.positions, table, RopeSpec(spec.turned, spec.turned, spec.dtype, spec.device))
    return out


@op(samples=_samples)
def latent_prepare(
    q: Tensor, kv: Tensor, weights: LatentWeights, pages: KVPages, step: StepInputs, spec: LatentSpec
) -> Tensor:
    """Norm the new latents, rotate keys and queries, and write latents and keys to `pages`.

    Args:
        q: (tokens, heads * (plain + turned)).
        kv: (tokens, rank + turned), the latent first.

    Returns: the queries, (tokens, heads, plain + turned).
    """
    latent, key = torch.split(kv, [spec.rank, spec.turned], dim=-1)
    latent = rms_norm(latent, weights.norm, NormSpec(spec.rank, spec.norm_eps, dtype=spec.dtype, device=spec.device))
    write_pages(latent[:, None], turn(key[:, None], weights.table, step, spec), pages, step)
    plain, turned = torch.split(q.view(len(q), spec.heads, -1), [spec.plain, spec.turned], dim=-1)
    return torch.cat([plain, turn(turned, weights.table, step, spec)], dim=-1)


# Providers that absorb round where the reference does not, and the other way about.
@op(
    samples=_attention_samples,
    tolerance=DEFAULT_TOLERANCE | {"bfloat16": (2e-2, 2e-2), "float16": (4e-3, 4e-3)},
    capturable=False,
)
def latent_attention(q: Tensor, up: Tensor, pages: KVPages, step: StepInputs, spec: LatentSpec) -> Tensor:
    """Causal attention of each sequence's new tokens to its pages, in float32.

    Args:
        q: (tokens, heads, plain + turned).
        up: (heads, plain + value, rank): what makes a head's plain keys and its values of latents.

    Returns: (tokens, heads * value) in the dtype of `q`. A sequence of length 0 (padding) gives zeros.
    """
    group = step.groups[pages.group]
    out = torch.zeros(len(q), spec.heads, spec.value, dtype=q.dtype, device=q.device)
    bounds, lengths = step.query_start.tolist(), step.seq_lens.tolist()
    for i, length in enumerate(lengths):
        a, b = bounds[i], bounds[i + 1]
        if a == b or length == 0:
            continue
        kept = torch.arange(length, device=q.device)
        where = group.page_table[i, kept // group.page_size].long(), kept % group.page_size
        latents, shared = (
            widened(pool[where], torch.float32, scale)[:, 0]
            for pool, scale in ((pages.k, pages.k_scale), (pages.v, pages.v_scale))
        )
        made = torch.einsum("kr,hdr->khd", latents, up.float())
        keys = torch.cat([made[..., : spec.plain], shared[:, None].expand(-1, spec.heads, -1)], dim=-1)
        scores = torch.einsum("qhd,khd->hqk", q[a:b].float(), keys) * spec.scale
        weights = scores.masked_fill(kept > step.positions[a:b, None], float("-inf")).softmax(dim=-1)
        out[a:b] = torch.einsum("hqk,khv->qhv", weights, made[..., spec.plain :]).to(q.dtype)
    return out.flatten(1)
