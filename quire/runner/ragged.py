"""Recorded steps that read short prompts, beside sequences that decode: one launch instead of hundreds, like `graphs`.

A recording has room for some sequences that compute one token each, and for some tokens of other sequences. What is
left over is given to the dummy row, which computes as many tokens as are missing on page 0. Called by the runner.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from quire.messages.plan import Grant
from quire.runner.graphs import Play, Recorder
from quire.runner.upload import upload

PROMPTS = 16
"""Sequences of more than one token that a recording has room for, the dummy among them."""


@dataclass(frozen=True, slots=True)
class GraphShape:
    """What a recording has room for: sequences with one token, and tokens of up to PROMPTS other sequences."""

    singles: int
    tokens: int


Forward = Callable[[Tensor, Tensor, GraphShape], Tensor]
"""Computes `counts`, (n,) int64, tokens of the rows `order`, (n,) int64, the singles first: hidden states of the last
token of each, (n, hidden)."""


class RaggedGraphs:
    """Recordings by their shape.

    Args:
        singles, tokens: sizes, ascending; every combination is recorded.
        forward: what is recorded.
        dummy_row: what fills the room that is left.
        device: of the rows.
    """

    def __init__(
        self, singles: Sequence[int], tokens: Sequence[int], forward: Forward, dummy_row: int, device: torch.device
    ) -> None:
        self._singles, self._tokens = list(singles), list(tokens)
        self._forward = forward
        self._dummy_row = dummy_row
        self._device = device
        most = max(self._singles, default=0) + PROMPTS
        # The first line names rows, the second counts tokens.
        self._numbers = torch.zeros(2, most, dtype=torch.int64, device=device)
        self._numbers[0].fill_(dummy_row)
        self._hidden = torch.empty(0, 0, device=device)
        self._plays: dict[GraphShape, Play] = {}

    @property
    def graph_shapes(self) -> list[GraphShape]:
        """What is recorded, the largest last."""
        return [GraphShape(singles, tokens) for singles in self._singles for tokens in self._tokens]

    def record(self, recorder: Recorder, graph_shapes: Sequence[GraphShape] | None = None) -> None:
        """Record every shape, the largest first, or only `graph_shapes`."""
        for graph_shape in reversed(self.graph_shapes if graph_shapes is None else graph_shapes):
            self._fill(graph_shape, [])
            self._plays[graph_shape] = recorder.record("prompts", partial(self._compute, graph_shape))

    def forget(self) -> None:
        """Drop what was recorded, like `DecodeGraphs.forget`."""
        self._plays.clear()

    def find(self, grants: Sequence[Grant]) -> GraphShape | None:
        """The smallest recording with room for these grants, if there is one."""
        singles = sum(grant.tokens == 1 for grant in grants)
        tokens = sum(grant.tokens for grant in grants) - singles
        fits = self._plays and 0 < len(grants) - singles < PROMPTS
        if not fits or singles > self._singles[-1] or tokens > self._tokens[-1]:
            return None
        return GraphShape(
            *(sizes[bisect_left(sizes, n)] for sizes, n in ((self._singles, singles), (self._tokens, tokens)))
        )

    def forward(self, graph_shape: GraphShape, grants: Sequence[Grant]) -> tuple[Tensor, list[int]]:
        """Compute the tokens of `grants`, those with one token first.

        Returns: hidden states, valid until the next call, and where in them that of each grant's last token is.
        """
        self._fill(graph_shape, grants)
        self._plays[graph_shape]()
        singles = sum(grant.tokens == 1 for grant in grants)
        return self._hidden, [*range(singles), *range(graph_shape.singles, graph_shape.singles + len(grants) - singles)]

    def _fill(self, graph_shape: GraphShape, grants: Sequence[Grant]) -> None:
        singles = [grant for grant in grants if grant.tokens == 1]
        others = grants[len(singles) :]
        left = graph_shape.tokens - sum(grant.tokens for grant in others)
        spare, empty = graph_shape.singles - len(singles), PROMPTS - 1 - len(others)
        dummy = self._dummy_row
        order = [g.row for g in singles] + [dummy] * spare + [g.row for g in others] + [dummy] * (empty + 1)
        counts = [1] * graph_shape.singles + [g.tokens for g in others] + [0] * empty + [left]
        self._numbers[:, : len(order)].copy_(upload(order + counts, self._device).view(2, -1))

    def _compute(self, graph_shape: GraphShape) -> None:
        rows = graph_shape.singles + PROMPTS
        hidden = self._forward(self._numbers[0, :rows], self._numbers[1, :rows], graph_shape)
        if not self._hidden.numel():
            most = self._singles[-1] + PROMPTS
            self._hidden = torch.empty(most, hidden.shape[1], dtype=hidden.dtype, device=hidden.device)
        self._hidden[: len(hidden)].copy_(hidden)
