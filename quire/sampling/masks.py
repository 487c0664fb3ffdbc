"""`Masks`: the grammars of rows. Which tokens each allows next is put on its logits; each token drawn leads it on.

The masks are filled by the host while the device computes logits, and sent beside that, by a stream of their own. A
row's mask is filled once its token before is known, so its line of the pinned buffer is written again only when the
copy from it is long done, and its line on the device when nobody reads it any more.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from quire.messages.plan import NewRow
from quire.structured.matcher import Matcher
from quire.structured.store import GrammarStore

ALL = -1
"""A word of a mask that allows all of its tokens."""


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
        if self._matchers.pop(row, None) is not None and self._buffer is not None:
            self._buffer.masks[row] = ALL
            self._buffer.send(row, row + 1)

    def follow(self, rows: list[int], before: list[int]) -> bool:
        """Whether a row with a grammar is among both."""
        return not self._matchers.keys().isdisjoint(set(rows).intersection(before)) if self._matchers else False

    @property
    def table(self) -> Tensor:
        """Masks by row, (max_rows, words) int32, on the device; the same tensor always, which `send` fills."""
        return self._made().device

    def send(self, rows: list[int], errors: dict[int, str]) -> None:
        """Put the masks of `rows` into the table; what is launched from now on reads them, and nothing here waits.

        Args:
            rows: those whose masks will be read; without a grammar they keep all tokens.
            errors: gets a sentence for each row whose grammar has no way on.
        """
        bound = [row for row in rows if row in self._matchers] if self._matchers else []
        if not bound:
            return
        buffer = self._made()
        self.store.backend.fill([(self._matchers[row], row) for row in bound], buffer.masks)
        self._tell(bound, errors)
        buffer.send(min(bound), max(bound) + 1)

    def advance(self, rows: list[int], tokens: list[int], errors: dict[int, str]) -> list[int]:
        """Lead the grammars of `rows` on by the tokens drawn. Returns the rows whose text is complete now."""
        if not self._matchers:
            return []
        bound = self._matchers.keys() - errors
        led = {row: token for row, token in zip(rows, tokens, strict=True) if row in bound}
        self.store.backend.take([(self._matchers[row], token) for row, token in led.items()])
        self._tell(led, errors)
        return [row for row in led if self._matchers[row].complete]

    def _tell(self, rows: Iterable[int], errors: dict[int, str]) -> None:
        for row in rows:
            why = self._matchers[row].error
            if why is not None:
                errors[row] = f"the grammar of this request has no way on: {why}"

    def _made(self) -> "_Buffer":
        self._buffer = self._buffer or _Buffer(self._shape, self._device)
        return self._buffer


class _Buffer:
    """Masks of all rows, (rows, words) int32, on the host and on the device: the same tensor on a CPU.

    `send` waits for nothing that was launched before it. That no line is written too early rests on who calls: a row's
    next mask is asked for when the result of its last draw is known (`InFlight`), so that draw and the copy before it
    are done; and a row ends when no step in flight has it any more (the scheduler releases it no sooner). Lines between
    that are copied along are as they were.

    Attributes:
        masks: the host's, for who fills them.
        device: the device's.
    """

    def __init__(self, shape: tuple[int, int], device: torch.device) -> None:
        apart = device.type != "cpu"
        self._host = torch.full(shape, ALL, dtype=torch.int32, pin_memory=apart)
        self.masks = self._host.numpy()
        self.device = torch.full(shape, ALL, dtype=torch.int32, device=device) if apart else self._host
        self._road = torch.Stream(device) if apart else None
        if self._road is not None:
            self._road.wait_stream(torch.accelerator.current_stream(device))

    def send(self, first: int, end: int) -> None:
        """Copy these rows, beside what the device computes; what is launched from now on waits for them."""
        if self._road is None:
            return
        with self._road:
            self.device[first:end].copy_(self._host[first:end], non_blocking=True)
        torch.accelerator.current_stream(self.device.device).wait_stream(self._road)
