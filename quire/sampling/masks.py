"""`Masks`: the grammars of rows. Which tokens each allows next is put on its logits; each token drawn leads it on.

The masks are filled by the host while the device computes logits. A row's mask is filled once its token before is
known, so its line of the pinned buffer is written again only when the copy from it is long done.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

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
        self._device = device
        self._matchers: dict[int, Matcher] = {}
        self._buffer: _Buffer | None = None

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

    def of(self, rows: list[int], errors: dict[int, str]) -> Tensor:
        """Masks by row, (max_rows, words) int32, on their way to the device; nothing here waits for it.

        Args:
            rows: those whose masks will be read; without a grammar they keep all tokens.
            errors: gets a sentence for each row whose grammar has no way on.
        """
        buffer = self._buffer = self._buffer or self._make_buffer()
        self._fill(rows, buffer.host, errors)
        if buffer.device is not buffer.host:
            used = slice(min(rows), max(rows) + 1)
            buffer.device[used].copy_(buffer.host[used], non_blocking=True)
        return buffer.device

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

    def _fill(self, rows: list[int], host: Tensor, errors: dict[int, str]) -> None:
        for row in rows:
            if row not in self._matchers:
                host[row] = ALL
        matchers = [(self._matchers[row], row) for row in rows if row in self._matchers]
        self.store.backend.fill(matchers, host.numpy())
        for matcher, row in matchers:
            if matcher.error is not None:
                errors[row] = _no_way(matcher.error)

    def _make_buffer(self) -> _Buffer:
        pinned = self._device.type != "cpu"
        host = torch.zeros(self._shape, dtype=torch.int32, pin_memory=pinned)
        return _Buffer(host, torch.zeros(self._shape, dtype=torch.int32, device=self._device) if pinned else host)


def _no_way(why: str) -> str:
    return f"the grammar of this request has no way on: {why}"
