"""Makes sample inputs for ops: seeded tensors, and steps over shuffled pages.

Used by the samples beside each op and by tests that drive a model by hand; the engine never imports it on its own.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from quire.ops.step import GroupInputs, SharedInputs, StepInputs

FLOATS = ("float32", "bfloat16")


def normal(dtype: str, *shape: int, seed: int = 0) -> Tensor:
    """Seeded normal values of the dtype called `dtype`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtypes[dtype])


def step_over(
    queries: Sequence[int],
    lengths: Sequence[int],
    tables: Sequence[Sequence[int]],
    page_size: int,
    alike: Sequence[tuple[Sequence[int], int]] = (),
) -> StepInputs:
    """A step of one cache group in which sequence i computes the last queries[i] of its lengths[i] tokens.

    Args:
        lengths: a sequence of length 0 is padding: it computes at position 0 and writes to slot 0.
        tables: page numbers of each sequence, enough for its length.
        alike: sequences whose tables begin with the same pages, and how many pages.

    Token ids are 0; the caller replaces them where they matter.
    """
    positions = [t for q, n in zip(queries, lengths, strict=True) for t in (range(n - q, n) if n else [0] * q)]
    owners = [i for i, q in enumerate(queries) for _ in range(q)]
    slots = [
        tables[i][t // page_size] * page_size + t % page_size if lengths[i] else 0
        for i, t in zip(owners, positions, strict=True)
    ]
    table = torch.zeros(len(tables), max((len(pages) for pages in tables), default=0), dtype=torch.int32)
    for i, pages in enumerate(tables):
        table[i, : len(pages)] = torch.tensor(pages, dtype=torch.int32)
    start = torch.tensor([0, *queries]).cumsum(0)
    shared = torch.tensor([[-1], [0]], dtype=torch.int32).repeat(1, len(tables))
    for number, (members, count) in enumerate(alike):
        shared[:, list(members)] = torch.tensor([[number], [count * page_size]], dtype=torch.int32)
    group = GroupInputs(
        table, torch.tensor(slots, dtype=torch.int64), page_size, SharedInputs(shared[0], shared[1]) if alike else None
    )
    return StepInputs(
        token_ids=torch.zeros(len(positions), dtype=torch.int64),
        positions=torch.tensor(positions, dtype=torch.int64),
        query_start=start.to(torch.int32),
        seq_lens=torch.tensor(lengths, dtype=torch.int32),
        logit_rows=start[1:] - 1,
        groups=(group,),
        max_query=max(queries, default=0),
        max_seq=max(lengths, default=0),
    )


dtypes = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}
