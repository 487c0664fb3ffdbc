"""`Masks`: the grammars of rows. Which tokens each allows next is put on its logits; each token drawn leads it on.

The masks are filled by the host while the device computes logits. A row's mask is filled once its token before is
known, so its line of the pinned buffer is written again only when the copy from it is long done.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding

from quire.messages.plan import NewRow
from quire.structured.matcher import Matcher
from quire.structured.store import GrammarStore

ALL = -1
"""A word of a mask that allows all of its tokens."""


@dataclass(slots=True)
class _Buffer:
    """Masks of all rows, (rows, words) int32, on the host and on the device (the same tensor on a CPU)."""

    host: Tensor
    device: Tensor


class Masks:
    """Matchers by row.

    Args:
        max_rows: rows are below it.
        vocab: width of the logits.
        device: where logits come from.
        store: compiled grammars.
    """

    def __init__(self, max_rows: int, vocab: int, device: torch.device, store: GrammarStore) -> None:
        self.store = store
        self._shape = (max_rows, -(-vocab // 32))
        self._vocab = vocab
        self._device = device
        self._matchers: dict[int, Matcher] = {}
        self._buffer: _Buffer | None = None
        self._offsets: Tensor | None = None

    def begin(self, new: NewRow) -> None:
        """A row with a grammar begins, or returns: its matcher is the fold of what it has generated."""
        wanted = new.params.structured_outputs
        if wanted is None:
            return
        matcher = self.store.start(wanted)
        matcher.take(new.token_ids[new.prompt_len :])
        self._matchers[new.row] = matcher

    def end(self, row: int) -> None:
        """The sequence of `row` has left."""
        self._matchers.pop(row, None)

    def follow(self, rows: list[int], before: list[int]) -> bool:
        """Whether a row with a grammar is among both."""
        return not self._matchers.keys().isdisjoint(set(rows).intersection(before)) if self._matchers else False

    def apply(self, x: Tensor, rows: list[int], order: Tensor, errors: dict[int, str]) -> None:
        """Set what a grammar forbids to -inf, in place. Nothing here waits for the device.

        Args:
            x: (n, vocab) float32 logits.
            rows: the row of each line; those without a grammar keep all tokens.
            order: the same, (n,) int64 on the device.
            errors: gets a sentence for each row whose grammar has no way on.
        """
        self._fill(rows, errors)
        x += self._offset(order)

    def advance(self, rows: list[int], tokens: list[int], errors: dict[int, str]) -> list[int]:
        """Lead the grammars of `rows` on by the tokens drawn. Returns the rows whose text is complete now."""
        complete = []
        for row, token in zip(rows, tokens, strict=True):
            matcher = self._matchers.get(row)
            if matcher is None or row in errors:
                continue
            matcher.take([token])
            if matcher.error is not None:
                errors[row] = _no_way(matcher.error)
            elif matcher.complete:
                complete.append(row)
        return complete

    def _fill(self, rows: list[int], errors: dict[int, str]) -> None:
        buffer = self._buffer = self._buffer or self._make_buffer()
        for row in rows:
            if row not in self._matchers:
                buffer.host[row] = ALL
        matchers = [(self._matchers[row], row) for row in rows if row in self._matchers]
        self.store.backend.fill(matchers, buffer.host.numpy())
        for matcher, row in matchers:
            if matcher.error is not None:
                errors[row] = _no_way(matcher.error)
        if buffer.device is not buffer.host:
            used = slice(min(rows), max(rows) + 1)
            buffer.device[used].copy_(buffer.host[used], non_blocking=True)

    def _make_buffer(self) -> _Buffer:
        pinned = self._device.type != "cpu"
        host = torch.zeros(self._shape, dtype=torch.int32, pin_memory=pinned)
        return _Buffer(host, torch.zeros(self._shape, dtype=torch.int32, device=self._device) if pinned else host)

    def _offset(self, rows: Tensor) -> Tensor:
        """What is added to the logits of `rows`, (n,) int64: (n, vocab) float32, 0 or -inf."""
        assert self._buffer is not None
        if self._offsets is None:
            self._offsets = _offsets_of_bytes(self._device)
        # A byte of the mask stands for eight tokens: one look-up brings all eight of them.
        octets = self._buffer.device[rows].view(torch.uint8)
        return embedding(octets.int(), self._offsets).view(len(rows), -1)[:, : self._vocab]


def _offsets_of_bytes(device: torch.device) -> Tensor:
    """(256, 8) float32: for each byte, 0 where its bit is set and -inf elsewhere, the lowest bit first."""
    bits = torch.arange(256)[:, None] >> torch.arange(8) & 1
    return torch.where(bits.bool(), 0.0, -torch.inf).to(device)


def _no_way(why: str) -> str:
    return f"the grammar of this request has no way on: {why}"
