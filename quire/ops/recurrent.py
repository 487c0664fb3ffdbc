"""Recurrent state in pages, and the short convolution that comes before every recurrence.

A page holds one state: that after the last token which has been computed of those that the page stands for. A step
begins each sequence with the state in the page of the token before, and leaves the new one in the page of its last
token; both may be the same page. Which pages these are follows from the page table alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.ops.registry import op
from quire.ops.samples import FLOATS, normal, step_over
from quire.ops.step import StepInputs


@dataclass(frozen=True, slots=True)
class StatePages:
    """One layer's recurrent state.

    Attributes:
        conv: (pages, width - 1, channels) in the model's dtype: the last inputs of the convolution, oldest first.
        state: (pages, heads, ...) float32, what the recurrence keeps.
        group: index of the cache group whose page tables name the pages.
    """

    conv: Tensor
    state: Tensor
    group: int


@dataclass(frozen=True, slots=True)
class StateSlots:
    """Pages of a step's sequences, (sequences,) int64 each. One that computes no token has `end` 0.

    Attributes:
        begin: with the state before the step.
        end: for the state after it.
        fresh: bool; nothing was computed before, so that `begin` means nothing.
    """

    begin: Tensor
    end: Tensor
    fresh: Tensor


def state_slots(step: StepInputs, group: int) -> StateSlots:
    """Where the sequences of `step` find and leave their states; worked out once per step."""

    def make() -> StateSlots:
        table, size = step.groups[group].page_table, step.groups[group].page_size
        counts = step.query_start[1:] - step.query_start[:-1]
        # Padding has length 0 and yet computes: at its beginning, and on page 0.
        start = (step.seq_lens - counts).clamp(min=0)
        last = (start + counts - 1).clamp(min=0)
        pages = [table.gather(1, (at // size)[:, None].long())[:, 0].long() for at in ((start - 1).clamp(min=0), last)]
        return StateSlots(pages[0], torch.where(counts > 0, pages[1], 0), start == 0)

    return step.once(("state slots", group), make)


def visits(step: StepInputs, group: int) -> list[tuple[slice, int | None, int]]:
    """Of every sequence that computes tokens: these, where it finds its state (None: nowhere), where it leaves it."""

    def make() -> list[tuple[slice, int | None, int]]:
        slots, bounds = state_slots(step, group), step.query_start.tolist()
        each = zip(pairwise(bounds), slots.begin.tolist(), slots.end.tolist(), slots.fresh.tolist(), strict=True)
        return [(slice(a, b), None if fresh else begin, end) for (a, b), begin, end, fresh in each if a < b]

    return step.once(("visits", group), make)


@dataclass(frozen=True, slots=True)
class ConvSpec:
    """A causal convolution over `width` tokens, of each channel by itself, and silu behind it."""

    channels: int
    width: int
    bias: bool
    dtype: str = "float32"
    device: str = "cpu"


CHUNKED = {"float32": (1e-4, 1e-4), "bfloat16": (2e-2, 2e-2), "bfloat16 float32": (4e-2, 4e-2)}
"""Tolerance of recurrences: providers take tokens by chunks, whose products are rounded like all of the dtype."""
STEPS = (
    # queries, lengths, page size
    ([7], [7], 4),
    ([1, 1, 1], [9, 1, 4], 4),
    ([4, 1, 7, 3, 70], [12, 20, 7, 19, 72], 8),
)


def state_step(queries: list[int], lengths: list[int], page_size: int) -> tuple[StepInputs, int]:
    """A step of one group over shuffled pages, and how many pages there are."""
    needed = [-(-n // page_size) for n in lengths]
    order = (torch.randperm(sum(needed), generator=torch.Generator().manual_seed(7)) + 1).tolist()
    tables = [[order.pop() for _ in range(count)] for count in needed]
    return step_over(queries, lengths, tables, page_size), sum(needed) + 1


def _samples() -> Iterator[tuple[ConvSpec, dict[str, Any]]]:
    for dtype in FLOATS:
        for queries, lengths, page_size in STEPS:
            spec = ConvSpec(24, 4 if page_size == 8 else 3, page_size == 8, dtype)
            step, pages = state_step(queries, lengths, page_size)
            yield (
                spec,
                {
                    # As layers have it: some columns of a wider product.
                    "x": normal(dtype, sum(queries), 40)[:, 8:32],
                    "weight": normal(dtype, spec.channels, spec.width, seed=1),
                    "bias": normal(dtype, spec.channels, seed=2) if spec.bias else None,
                    "pages": StatePages(normal(dtype, pages, spec.width - 1, 24, seed=3), torch.zeros(pages, 1), 0),
                    "step": step,
                    "spec": spec,
                },
            )


@op(samples=_samples, capturable=False)
def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, pages: StatePages, step: StepInputs, spec: ConvSpec
) -> Tensor:
    """silu(sum over j of weight[:, j] * x of the token `width - 1 - j` before + bias), in float32.

    Reads the inputs before this step from `pages.conv` and leaves the last ones there.

    Args:
        x: (tokens, channels), rows may lie apart.
        weight: (channels, width); bias: (channels,) or None.

    Returns: (tokens, channels) in the dtype of `x`, contiguous.
    """
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    for tokens, begin, end in visits(step, pages.group):
        before = torch.zeros_like(pages.conv[0]) if begin is None else pages.conv[begin]
        seen = torch.cat([before, x[tokens]])
        pages.conv[end] = seen[len(seen) - spec.width + 1 :]
        # Not as torch's convolution, which takes TF32 for float32 on GPUs.
        count = len(seen) - spec.width + 1
        wide = torch.zeros(count, spec.channels, device=x.device)
        for j, tap in enumerate(weight.float().unbind(1)):
            wide += seen[j : j + count].float() * tap
        out[tokens] = F.silu(wide if bias is None else wide + bias.float()).to(x.dtype)
    return out
