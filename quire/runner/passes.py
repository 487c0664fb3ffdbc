"""`Passes`: the model run for some rows, and tokens drawn from what it gives: on the device alone, so that it can be
recorded. Called by `GenerationSteps`, directly or from a recording; it knows no plans.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quire.ops.inputs import Bounds
from quire.ops.step import StepInputs
from quire.parallel.mesh import Mesh
from quire.runner.loaded import Loaded
from quire.runner.ragged import GraphShape
from quire.runner.rows import Rows
from quire.sampling.sampler import Sampler, Samples


@dataclass(frozen=True, slots=True)
class Kind:
    """What kernels are told of a step.

    Attributes:
        sharing: which rows begin alike.
        singles: so many rows at the front compute one token each.
        every: hidden states of all tokens are wanted.
        lines: of hidden states, where only those of last tokens are: `ends` of the step, if there are not more rows.
    """

    sharing: bool = False
    singles: int = 0
    every: bool = False
    lines: int = 0


class Passes:
    """Passes over the model for `rows`, on one rank.

    Args:
        loaded: the model, and the ops around it.
        rows: whose tokens are computed; each pass counts them as computed.
        mesh: this rank among those that share the model.
        sampler: on rank 0, which samples and tells the others.
    """

    def __init__(self, loaded: Loaded, rows: Rows, mesh: Mesh, sampler: Sampler | None) -> None:
        self.model, self._ops = loaded.model, loaded.ops
        self._rows = rows
        self._mesh = mesh
        self._sampler = sampler

    def forward(
        self,
        order: Tensor,
        counts: Tensor,
        sampling: Tensor,
        bounds: Bounds,
        kind: Kind,
    ) -> tuple[StepInputs, Tensor]:
        """Compute the next `counts` tokens of the rows in `order`; they count as computed afterwards.

        Returns: hidden states of each row's last token, perhaps with lines of nobody behind, or those of all tokens.
        """
        rows = self._rows
        inputs = self._ops.make_inputs(
            order, counts, sampling, rows.tokens, rows.computed, rows.page_tables, rows.page_sizes, bounds
        )
        # Where each row computes one token, the last ones are all.
        ends = 0 if kind.every or inputs.max_query == 1 else max(len(order), kind.lines)
        inputs = replace(inputs, singles=kind.singles, ends=ends)
        if kind.sharing:
            inputs = rows.shared_by(order, inputs)
        hidden: Tensor = self.model(inputs)
        rows.computed.index_add_(0, order, counts)
        return inputs, hidden

    def decode(self, order: Tensor, sharing: bool) -> Tensor:
        """One token of each row: what is recorded. The dummy row forgets it at once."""
        count, rows = len(order), self._rows
        bounds = Bounds(count, 1, rows.max_len)
        _, hidden = self.forward(order, rows.ones[:count], rows.lines[:count], bounds, Kind(sharing))
        rows.computed[rows.dummy].zero_()
        return hidden

    def read(self, order: Tensor, counts: Tensor, shape: GraphShape) -> Tensor:
        """Tokens of prompts, and one token of other rows: what is recorded. The dummy row forgets them at once."""
        rows = self._rows
        bounds = Bounds(shape.singles + shape.tokens, shape.tokens, rows.max_len)
        _, hidden = self.forward(order, counts.int(), rows.lines[:0], bounds, Kind(singles=shape.singles))
        rows.computed[rows.dummy].zero_()
        return hidden

    def greedy(self, order: Tensor, hidden: Tensor) -> Tensor:
        """The most probable next token of each row, entered into the rows: what is recorded after `decode`."""
        return self._enter(order, self._ops.draw_greedy(self.model.logits(hidden)))

    def random(self, order: Tensor, hidden: Tensor) -> Tensor:
        """A token of each row by its own settings, entered into the rows: the other way to go on from `decode`."""
        assert self._sampler is not None, "rank 0 alone draws by settings"
        return self._enter(order, self._sampler.draw_all(self.model.logits(hidden), order, self._rows.known))

    def edited(self, order: Tensor, hidden: Tensor) -> Tensor:
        """A token of each row by its own settings from edited logits, and what is reported: the third way to go on."""
        assert self._sampler is not None, "rank 0 alone draws by settings"
        logits = self.model.logits(hidden)
        return self._enter(order, self._sampler.draw_edited(logits, order, self._rows.tokens, self._rows.known))

    def sample(self, rows: list[int], device_rows: Tensor, hidden: Tensor) -> Samples | None:
        """A token of each row by the sampler, entered into the rows. What came of it, on the rank that samples.

        `hidden` may have more lines than there are rows.
        """
        logits = self.model.logits(hidden)[: len(rows)]
        if self._sampler is None:
            tokens = self._mesh.broadcast(torch.empty_like(device_rows), 0)
            self._append(device_rows, tokens)
            return None
        samples = self._sampler.sample(logits, rows, device_rows, self._rows.tokens, self._rows.known)
        self._append(device_rows, self._mesh.broadcast(samples.tokens, 0))
        return samples

    def _enter(self, order: Tensor, drawn: Tensor) -> Tensor:
        """Append the tokens, the first line of `drawn`, (m, n); the dummy row forgets its own at once."""
        self._append(order, drawn[0])
        self._rows.known[self._rows.dummy].zero_()
        return drawn

    def _append(self, rows: Tensor, tokens: Tensor) -> None:
        """Enter one new token into each row. rows, tokens: (n,) int64."""
        self._ops.append_tokens(rows, tokens, self._rows.tokens, self._rows.known)
