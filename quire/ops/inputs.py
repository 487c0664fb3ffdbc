"""The op that turns rows and a plan's counts into `StepInputs`.

Preparing inputs is an op like any other, so that no device needs a runner of its own: a provider may fuse it into one
kernel. It reads device rows only; the host gives the order of rows, the tokens of each and their bounds.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quire.ops.registry import op
from quire.ops.step import GroupInputs, StepInputs


class Bounds(NamedTuple):
    """How large a step is, for the host: tokens in all, most tokens of a sequence, longest sequence after the step."""

    tokens: int
    max_query: int
    max_seq: int


def _samples() -> Iterable[tuple[Any, dict[str, Any]]]:
    generator = torch.Generator().manual_seed(0)
    for counts in ([1, 1, 1], [5], [3, 1, 7]):
        rows = len(counts)
        yield (
            None,
            {
                "order": torch.arange(rows - 1, -1, -1),
                "counts": torch.tensor(counts, dtype=torch.int32),
                "sampling": torch.tensor([i for i in range(rows) if i != 1]),
                "tokens": torch.randint(0, 50, (rows, 33), generator=generator, dtype=torch.int32),
                "computed": torch.randint(0, 20, (rows,), generator=generator, dtype=torch.int32),
                "page_tables": [
                    torch.randint(1, 9, (rows, 8), generator=generator, dtype=torch.int32),
                    torch.randint(1, 9, (rows, 4), generator=generator, dtype=torch.int32),
                ],
                "page_sizes": [4, 8],
                "bounds": Bounds(sum(counts), max(counts), 32),
            },
        )


@op(samples=_samples, batch_invariant=True)
def step_inputs(
    order: Tensor,
    counts: Tensor,
    sampling: Tensor,
    tokens: Tensor,
    computed: Tensor,
    page_tables: list[Tensor],
    page_sizes: list[int],
    bounds: Bounds,
) -> StepInputs:
    """Pack the next `counts` tokens of the rows in `order`.

    Args:
        order: (sequences,) int64, rows in the order of the plan's grants.
        counts: (sequences,) int32, tokens that each computes now.
        sampling: (samples,) int64, which of the sequences sample, as indices into `order`.
        tokens: (rows, max_len) int32; computed: (rows,) int32, before this step.
        page_tables: per group (rows, max_pages) int32; page_sizes: tokens per page of each.
        bounds: of the step, known on the host.
    """
    total, max_query, max_seq = bounds
    query_start = torch.zeros(len(order) + 1, dtype=torch.int32, device=order.device)
    torch.cumsum(counts, 0, dtype=torch.int32, out=query_start[1:])
    sequence = torch.repeat_interleave(torch.arange(len(order), device=order.device), counts.long(), output_size=total)
    row = order[sequence]
    start = computed[order]
    offset = torch.arange(total, device=order.device) - query_start[:-1].long()[sequence]
    positions = start.long()[sequence] + offset
    groups = []
    for table, size in zip(page_tables, page_sizes, strict=True):
        slots = table[row, positions // size].long() * size + positions % size
        groups.append(GroupInputs(table[order, : -(-max_seq // size)], slots, size))
    return StepInputs(
        token_ids=tokens[row, positions].long(),
        positions=positions,
        query_start=query_start,
        seq_lens=start + counts,
        logit_rows=query_start[1:].long()[sampling] - 1,
        groups=tuple(groups),
        max_query=max_query,
        max_seq=max_seq,
    )
