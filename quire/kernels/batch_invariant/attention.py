"""Attention of each token by itself: the shapes of its products follow from its position alone.

Each token gets a row of the page table, so a step takes memory for tokens times pages of a sequence.
"""

from dataclasses import replace

import torch
from torch import Tensor

from quire.ops.attention import AttentionSpec, HeadWeights, KVPages, attend, paged_attention, prepare
from quire.ops.registry import provide
from quire.ops.step import StepInputs


def _singles(step: StepInputs) -> StepInputs:
    """The step as if each token were a sequence of its own, computed up to there."""
    tokens = len(step.positions)
    row = torch.repeat_interleave(step.query_start.diff(), output_size=tokens)
    there = step.seq_lens.index_select(0, row).clamp(max=1)
    groups = tuple(replace(group, page_table=group.page_table[row], shared=None) for group in step.groups)
    return replace(
        step,
        query_start=torch.arange(tokens + 1, dtype=torch.int32, device=row.device),
        seq_lens=((step.positions + 1) * there).int(),
        groups=groups,
        max_query=1,
        derived={},
    )


@provide("batch_invariant", paged_attention, capturable=False, batch_invariant=True)
def invariant_paged_attention(
    q: Tensor, pages: KVPages, step: StepInputs, spec: AttentionSpec, sinks: Tensor | None = None
) -> Tensor:
    """See `paged_attention`."""
    singles = step.once("batch_invariant", lambda: _singles(step))
    out: Tensor = paged_attention(q, pages, singles, spec, sinks)
    return out


@provide("batch_invariant", attend, capturable=False, batch_invariant=True)
def invariant_attend(
    qkv: Tensor, weights: HeadWeights, pages: KVPages, step: StepInputs, spec: AttentionSpec
) -> Tensor:
    """See `attend`."""
    q = prepare(qkv, weights, pages, step, spec)
    out: Tensor = invariant_paged_attention(q, pages, step, spec, weights.sinks)
    return out.flatten(1)
