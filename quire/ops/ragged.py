"""Attention in both directions among the tokens of a step, without pages: what encoders do.

Every sequence is in the step as a whole, packed one after another without padding.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from quire.ops.registry import op
from quire.ops.samples import FLOATS, normal, step_over
from quire.ops.step import StepInputs


@dataclass(frozen=True, slots=True)
class RaggedSpec:
    """One layer's attention, as this rank computes it.

    Attributes:
        heads: of queries, and as many of keys.
        scale: of the scores.
        reach: a token sees itself and so many tokens on either side; None sees its whole sequence.
    """

    heads: int
    head_dim: int
    scale: float
    reach: int | None = None
    dtype: str = "float32"
    device: str = "cpu"


def _samples() -> Iterator[tuple[RaggedSpec, dict[str, Any]]]:
    for dtype in FLOATS:
        for lengths, reach in (([1], None), ([5, 3, 5, 1], None), ([9, 2, 9], 2), ([7], 0), ([4, 6], 30)):
            spec = RaggedSpec(3, 8, 8**-0.5, reach, dtype)
            heads = {name: normal(dtype, sum(lengths), 3, 8, seed=i) for i, name in enumerate("qkv")}
            step = step_over(lengths, lengths, [[1] * n for n in lengths], 1)
            yield spec, {**heads, "step": step, "spec": spec}
            if len(lengths) == 3:
                seen = torch.tensor([9, 1, 4], dtype=torch.int32)
                yield spec, {**heads, "step": replace(step, seen=seen), "spec": spec}


@op(samples=_samples, capturable=False)
def ragged_attention(q: Tensor, k: Tensor, v: Tensor, step: StepInputs, spec: RaggedSpec) -> Tensor:
    """Attention of each token to the tokens of its sequence that are seen, before and after it, in float32.

    One that sees none gets zeros.

    Args:
        q, k, v: (tokens, heads, head_dim).

    Returns: (tokens, heads, head_dim) in the dtype of `q`.
    """
    out = torch.empty_like(q)
    bounds = step.query_start.tolist()
    seen = [b - a for a, b in pairwise(bounds)] if step.seen is None else step.seen.tolist()
    for (a, b), count in zip(pairwise(bounds), seen, strict=True):
        scores = torch.einsum("qhd,khd->hqk", q[a:b].float(), k[a : a + count].float()) * spec.scale
        if spec.reach is not None:
            away = torch.arange(count, device=q.device) - torch.arange(b - a, device=q.device)[:, None]
            scores = scores.masked_fill(away.abs() > spec.reach, float("-inf"))
        shares = scores.softmax(dim=-1).masked_fill((scores == float("-inf")).all(-1, keepdim=True), 0.0)
        out[a:b] = torch.einsum("hqk,khd->qhd", shares, v[a : a + count].float()).to(q.dtype)
    return out
