"""`Samples`: what a step drew, on the device at once and on the host in one transfer.

The copy to the host is started when the samples are made, so that reading them later waits for them alone and not for
the step that was launched meanwhile.
"""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from quire.messages.plan import TokenLogprobs
from quire.sampling.logprobs import Logprobs, to_list

OK, BAD, EXHAUSTED = 0, 1, 2
"""Status of a row: a token was drawn; its logits were not finite; no token was left to draw."""

NOTHING_LEFT = (
    "no token is left to sample: logit_bias, allowed_token_ids, bad_words, min_tokens and logits processors together "
    "exclude every token of the vocabulary"
)


class _Event(Protocol):
    def synchronize(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Reported:
    """Log-probabilities of some rows: `counts[i]` of them for the i-th of `rows`."""

    rows: list[int]
    counts: list[int]
    found: Logprobs


@dataclass(slots=True)
class Samples:
    """What one call of the sampler drew.

    Attributes:
        rows: row of each sample.
        drawn: (2, n) int64 on the device: tokens, 0 where nothing could be drawn; and OK, BAD or EXHAUSTED.
        reported: log-probabilities, for rows that asked.
        errors: rows whose own callables failed.
    """

    rows: list[int]
    drawn: Tensor
    reported: list[Reported] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)
    _host: Tensor = field(init=False)
    _arrived: _Event | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        packed = self.drawn.view(-1)
        if self.reported:
            parts = [packed]
            for block in self.reported:
                parts += [block.found.ranks, block.found.ids, block.found.values.view(torch.int32)]
            packed = torch.cat([part.reshape(-1).int() for part in parts])
        if packed.device.type == "cpu":
            self._host = packed
            return
        self._host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
        self._host.copy_(packed, non_blocking=True)
        event = torch.Event(packed.device)
        event.record()
        self._arrived = event

    @property
    def tokens(self) -> Tensor:
        """(n,) int64 on the device."""
        return self.drawn[0]

    @property
    def bad(self) -> Tensor:
        """(n,) bool on the device: rows whose logits were not finite."""
        return self.drawn[1] == BAD

    def wait(self) -> None:
        """Wait until they are on the host."""
        if self._arrived is not None:
            self._arrived.synchronize()

    def to_host(self) -> tuple[list[int], list[int], dict[int, TokenLogprobs], dict[int, str]]:
        """Wait for the samples: tokens in the order of rows, bad rows, log-probabilities by row, errors by row."""
        self.wait()
        n = len(self.rows)
        tokens: list[int] = self._host[:n].tolist()
        errors = dict(self.errors)
        bad = []
        for row, status in zip(self.rows, self._host[n : 2 * n].tolist(), strict=True):
            if status == BAD:
                bad.append(row)
            elif status == EXHAUSTED:
                errors.setdefault(row, NOTHING_LEFT)
        lost = {*bad, *errors}
        logprobs = {row: entry for row, entry in self._reported().items() if row not in lost}
        return tokens, bad, logprobs, errors

    def _reported(self) -> dict[int, TokenLogprobs]:
        start = 2 * len(self.rows)
        result: dict[int, TokenLogprobs] = {}
        for block in self.reported:
            shape = block.found.ids.shape
            ranks, ids, values = self._host[start:].split_with_sizes(
                [shape[0], shape.numel(), shape.numel(), len(self._host) - start - shape[0] - 2 * shape.numel()]
            )[:3]
            start += shape[0] + 2 * shape.numel()
            entries = to_list(ids.view(shape).tolist(), values.view(torch.float32).view(shape).tolist(), ranks.tolist())
            for row, count, entry in zip(block.rows, block.counts, entries, strict=True):
                result[row] = TokenLogprobs(entry.ids[: count + 1], entry.logprobs[: count + 1], entry.rank)
        return result
