"""`Samples`: what a step drew, on the device at once and on the host in one transfer.

The copy to the host is started when the samples are made, so that reading them later waits for them alone and not for
the step that was launched meanwhile.
"""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quire.messages.plan import TokenLogprobs
from quire.ops.logprobs import Logprobs
from quire.sampling.logprobs import told

OK, BAD, EXHAUSTED = 0, 1, 2
"""Status of a row: a token was drawn; its logits were not finite; no token was left to draw."""

NOTHING_LEFT = (
    "no token is left to sample: logit_bias, allowed_token_ids, bad_words, min_tokens and logits processors together "
    "exclude every token of the vocabulary"
)


class _Event(Protocol):
    def synchronize(self) -> None: ...


@dataclass(frozen=True, slots=True)
class LogprobRequests:
    """Samples whose log-probabilities are reported: by how many they want, their places among the samples."""

    lines: dict[int, list[int]]

    @property
    def top(self) -> int:
        """The most that any wants: so many numbers of every row travel to the host."""
        return max(self.lines)


def packed(found: Logprobs) -> Tensor:
    """Log-probabilities of n rows as numbers to follow (2, n) of `Samples.drawn`: (3 + 2 * top, n) int64.

    Ranks, ids, and the bits of values.
    """
    bits = found.values.view(torch.int32).long()
    return torch.cat([found.ranks[None], found.ids.T, bits.T])


@dataclass(slots=True)
class Samples:
    """What one call of the sampler drew for n rows.

    Attributes:
        rows: row of each sample.
        drawn: (2, n or more) int64 on the device: tokens, 0 where nothing could be drawn; and OK, BAD or EXHAUSTED.
            Where log-probabilities are reported, more lines follow: see `packed`. It may be overwritten as soon as the
            samples are made.
        asked: who wants them, if anybody does.
        errors: rows whose own callables failed, or whose grammars have no way on.
    """

    rows: list[int]
    drawn: Tensor
    asked: LogprobRequests | None = None
    errors: dict[int, str] = field(default_factory=dict)
    _host: Tensor = field(init=False)
    _arrived: _Event | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        apart = self.drawn.device.type != "cpu"
        self._host = torch.empty(self.drawn.shape, dtype=torch.int64, pin_memory=apart)
        self._host.copy_(self.drawn, non_blocking=apart)
        if apart:
            event = torch.Event(self.drawn.device)
            event.record()
            self._arrived = event

    @property
    def tokens(self) -> Tensor:
        """(n,) int64 on the device."""
        return self.drawn[0, : len(self.rows)]

    @property
    def bad(self) -> Tensor:
        """(n,) bool on the device: rows whose logits were not finite."""
        return self.drawn[1, : len(self.rows)] == BAD

    def wait(self) -> None:
        """Wait until they are on the host."""
        if self._arrived is not None:
            self._arrived.synchronize()

    def to_host(self) -> tuple[list[int], list[int], dict[int, TokenLogprobs], dict[int, str]]:
        """Wait for the samples: tokens in the order of rows, bad rows, log-probabilities by row, errors by row."""
        self.wait()
        # numpy reads a few numbers several times faster than torch.
        found = self._host.numpy()[:, : len(self.rows)]
        errors = dict(self.errors)
        bad = []
        for line in found[1].nonzero()[0].tolist():
            if found[1, line] == BAD:
                bad.append(self.rows[line])
            else:
                errors.setdefault(self.rows[line], NOTHING_LEFT)
        logprobs = {} if self.asked is None else self._reported(found, self.asked)
        for row in {*bad, *errors}:
            logprobs.pop(row, None)
        return found[0].tolist(), bad, logprobs, errors

    def _reported(self, found: NDArray[np.int64], asked: LogprobRequests) -> dict[int, TokenLogprobs]:
        half = 3 + (len(found) - 3) // 2
        reported: dict[int, TokenLogprobs] = {}
        for count, lines in asked.lines.items():
            rows, mine, width = self.rows, found, 1 + count
            if len(lines) < len(rows):
                rows, mine = [rows[line] for line in lines], found[:, lines]
            entries = told(mine[3 : min(half, 3 + width)], mine[half : half + width], mine[2])
            reported |= zip(rows, entries, strict=True)
        return reported
