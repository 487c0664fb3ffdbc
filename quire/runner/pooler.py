"""`Pooler`: what the tokens of a text become: a vector, scores of labels, or one of these for each token.

A prompt may come in chunks; what is needed of earlier ones is kept in a row of its own. Called by `PoolingSteps`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.checkpoint.pooling import Activation, PoolerFacts
from quire.layers.model import Projector, Reader, Scorer
from quire.messages.plan import Grant, StepResult
from quire.messages.pooling import TOKEN_TASKS, Pooling
from quire.runner.rows import HostRow
from quire.runner.upload import upload


@dataclass(slots=True)
class PooledStep:
    """A launched step. `result` waits for the device.

    Attributes:
        found: rows whose texts are at their end, and their values, (rows, values) or (tokens, values) of a single one.
    """

    step: int
    found: list[tuple[list[int], Tensor]] = field(default_factory=list)

    def wait(self) -> None:
        """Bring the values to the host."""
        self.found = [(rows, values.float().cpu()) for rows, values in self.found]

    def result(self) -> StepResult:
        """The vectors as bytes; rows with values that are not finite are bad."""
        vectors: dict[int, bytes] = {}
        bad: list[int] = []
        self.wait()
        for rows, values in self.found:
            host = values.view(len(rows), -1)
            finite = torch.isfinite(host).all(dim=1).tolist()
            for row, value, good in zip(rows, host, finite, strict=True):
                vectors[row] = value.numpy().tobytes()
                if not good:
                    bad.append(row)
        return StepResult(self.step, [], [], bad, vectors=vectors)


class Pooler:
    """Pools the hidden states of each step.

    Args:
        facts: how the checkpoint pools.
        model: scores labels, if it has a head.
        rows: rows are below it.
        device: where hidden states come from.
    """

    def __init__(self, facts: PoolerFacts, model: Reader, rows: int, device: torch.device) -> None:
        self._facts, self._model = facts, model
        self._rows, self._device = rows, device
        self._state = torch.empty(0, 0, device=device)
        self._tokens: dict[int, list[Tensor]] = {}

    def forget(self, rows: Sequence[int]) -> None:
        """Nothing of these rows counts any more."""
        for row in rows:
            self._tokens.pop(row, None)

    def pool(
        self, step: int, grants: Sequence[Grant], hosts: Sequence[HostRow], hidden: Tensor, bounds: Tensor
    ) -> PooledStep:
        """Take in a step.

        Args:
            step: its number.
            grants: in the order of the tokens.
            hosts: of each, not yet advanced.
            hidden: (tokens, hidden).
            bounds: (grants + 1,) int32, where the tokens of each begin.
        """
        ends = [host.computed + grant.tokens == host.new.prompt_len for grant, host in zip(grants, hosts, strict=True)]
        done: dict[Pooling, list[int]] = {}
        pooled = PooledStep(step)
        texts: list[int] = []
        start = 0
        for i, (grant, host) in enumerate(zip(grants, hosts, strict=True)):
            wanted = _pooling_of(host)
            if wanted.task in TOKEN_TASKS:
                self._tokens.setdefault(grant.row, []).append(hidden[start : start + grant.tokens])
                if ends[i]:
                    values = torch.cat(self._tokens.pop(grant.row))
                    pooled.found.append(([grant.row], self._finish(values, wanted)))
            else:
                texts.append(i)
                if ends[i]:
                    done.setdefault(_alike(wanted), []).append(i)
            start += grant.tokens
        if texts:
            self._gather(grants, hosts, hidden, bounds)
        for wanted, numbers in done.items():
            rows = [grants[i].row for i in numbers]
            values = self._state.index_select(0, upload(rows, self._device))
            if self._facts.method == "mean":
                counts = upload([hosts[i].new.prompt_len for i in numbers], self._device)
                values = values / counts[:, None]
            pooled.found.append((rows, self._finish(values.to(hidden.dtype), wanted)))
        return pooled

    def _gather(self, grants: Sequence[Grant], hosts: Sequence[HostRow], hidden: Tensor, bounds: Tensor) -> None:
        """Bring the rows' states up to date with this step, in float32."""
        if not self._state.numel():
            self._state = torch.zeros(self._rows, hidden.shape[1], device=self._device)
        if self._facts.method == "cls":
            first = [i for i, host in enumerate(hosts) if host.computed == 0]
            self._keep(grants, first, hidden, bounds[:-1])
        elif self._facts.method == "last":
            self._keep(grants, list(range(len(grants))), hidden, bounds[1:] - 1)
        else:
            order = upload([grant.row for grant in grants], self._device)
            begun = upload(
                [grant.row for grant, host in zip(grants, hosts, strict=True) if not host.computed], self._device
            )
            self._state.index_fill_(0, begun, 0)
            sums = torch.segment_reduce(hidden.float(), "sum", lengths=(bounds[1:] - bounds[:-1]).long(), unsafe=True)
            self._state.index_add_(0, order, sums)

    def _keep(self, grants: Sequence[Grant], numbers: list[int], hidden: Tensor, at: Tensor) -> None:
        rows = upload([*(grants[i].row for i in numbers), *numbers], self._device).view(2, -1)
        self._state.index_copy_(0, rows[0], hidden.index_select(0, at.long()[rows[1]]).float())

    def _finish(self, values: Tensor, wanted: Pooling) -> Tensor:
        """(n, hidden) to (n, values) in float32."""
        if self._facts.head != "none":
            model: Scorer = self._model  # type: ignore[assignment]
            return _activated(model.scores(values).float(), wanted.activation)
        if self._facts.projections:
            projector: Projector = self._model  # type: ignore[assignment]
            values = projector.projections.forward(values)
        values = values[:, : wanted.dimensions].float()
        return F.normalize(values, dim=-1) if wanted.normalize else values


def _activated(scores: Tensor, activation: Activation) -> Tensor:
    if activation == "sigmoid":
        return scores.sigmoid()
    return scores.softmax(dim=-1) if activation == "softmax" else scores


def _pooling_of(host: HostRow) -> Pooling:
    assert host.new.pooling is not None, "an engine that pools serves nothing else"
    return host.new.pooling


def _alike(wanted: Pooling) -> Pooling:
    """What decides how a vector is finished; equal for those that can be finished together."""
    return Pooling(wanted.task, wanted.dimensions, wanted.normalize, wanted.activation, False, 0, 0)
