"""`Sampler`: from a batch of logits to one token per row.

A batch in which every row is greedy costs one arg-max, one that only draws costs one op; rows whose logits are edited
follow in slices. The result of a row depends on its own logits, settings, history and (seed, position) only. Called by
the runner of the rank that samples; it knows rows by index and nothing of sequences.
"""

from dataclasses import replace

import torch
from torch import Tensor

from quire.messages.plan import NewRow
from quire.ops.draw import Group
from quire.ops.edit import IN_PROMPT, EditTables
from quire.sampling import batch as batches
from quire.sampling import processors
from quire.sampling.batch import Batch, DrawMode, Slice, slice_rows
from quire.sampling.kernels import Kernels
from quire.sampling.masks import Masks
from quire.sampling.processors import History
from quire.sampling.rows import Feature, RowState, SamplingRow
from quire.sampling.samples import BAD, EXHAUSTED, Samples, packed
from quire.structured.store import GrammarStore

__all__ = ["Sampler", "Samples"]


class Sampler:
    """Sampling state of all rows, and the draw.

    Args:
        max_rows: rows are below it.
        vocab_size: width of the logits.
        max_len: longest sequence in tokens.
        device: where logits come from.
        grammars: compiled ones; a store of its own if None.
        kernels: the ops; the reference of each if None.
    """

    def __init__(
        self,
        max_rows: int,
        vocab_size: int,
        max_len: int,
        device: torch.device,
        grammars: GrammarStore | None = None,
        kernels: Kernels | None = None,
    ) -> None:
        assert max_len < IN_PROMPT, "penalty counts hold numbers below 2**30"
        self.vocab = vocab_size
        self.device = device
        self._state = RowState(max_rows, vocab_size, device)
        self._masks = Masks(max_rows, vocab_size, device, GrammarStore() if grammars is None else grammars)
        self.kernels = Kernels() if kernels is None else kernels
        self._batch = Batch([], [], vocab_size, device)
        self._lasting = EditTables()
        self._generation = -1

    def stay(self) -> None:
        """Take memory for all tables that edit logits, which from now on stay where they are: before `draw_edited`."""
        self._lasting = replace(self._state.stay(), masks=self._masks.table)

    @torch.inference_mode()
    def begin(self, *rows: NewRow) -> None:
        """Sequences enter rows; everything that these rows held before is overwritten."""
        self._state.begin(*rows)
        for new in rows:
            self._masks.end(new.row)
            self._masks.begin(new)

    @torch.inference_mode()
    def end(self, *rows: int) -> None:
        """The sequences of `rows` have left."""
        self._state.end(*rows)
        for row in rows:
            self._masks.end(row)

    @torch.inference_mode()
    def sample(self, logits: Tensor, rows: list[int], rows_device: Tensor, history: Tensor, known: Tensor) -> Samples:
        """Draw the next token of each row. Does not change `logits`.

        Args:
            logits: (n, vocab) of any floating type; line i belongs to rows[i].
            rows: rows that sample, each at most once, all begun.
            rows_device: the same, (n,) int64.
            history: (max_rows, max_len) int32, known tokens of each row.
            known: (max_rows,) int32, how many; the drawn token will stand at that position.
        """
        batch = self._plan(rows)
        past = History(history, known)
        drawn = self._draw(logits, rows_device, past, batch.groups)
        errors: dict[int, str] = {}
        for part in batch.edited:
            self._draw_edited(logits, part, rows_device, past, (drawn, errors))
        if batch.counted:
            self._state.counts.add(rows_device, drawn[0])
        if batch.asked is not None:
            drawn = torch.cat([drawn, self._describe(logits, drawn[0], batch, batch.asked.top)])
        return Samples(batch.rows, drawn, batch.asked, errors)

    def draw_all(self, logits: Tensor, rows: Tensor, known: Tensor) -> Tensor:
        """What `sample` draws for rows of which it is known only that their logits are not edited: for recordings.

        Args:
            logits: (n, vocab); rows: (n,) int64, any that have begun or never did; known: (max_rows,) int32.

        Returns: (2, n) int64, as the op `draw_tokens` does.
        """
        return self.kernels.draw(logits, rows, known, self._state.table, None)

    def draw_edited(self, logits: Tensor, rows: Tensor, history: Tensor, known: Tensor) -> Tensor:
        """What `sample` draws for rows of which it is known only that none has callables: for recordings.

        Args: as of `draw_all` and `sample`. The masks are those that `send_masks` sends.

        Returns: (5 + 2 * RECORDED_TOP, n) int64, as `Samples.drawn`; of log-probabilities what rows want.
        """
        past, size = History(history, known), slice_rows(self.vocab)
        before, parts = self.kernels.greedy(logits)[1], []
        for first in range(0, len(rows), size):
            at = slice(first, first + size)
            drawn = self._draw_from_edited(logits[at], rows[at], past, self._lasting, None, before[at])
            wanted = self._state.wanted[rows[at]]
            found = self.kernels.describe(logits[at], drawn[0], batches.RECORDED_TOP, wanted)
            parts.append(torch.cat([drawn, packed(found)]))
        drawn = torch.cat(parts, 1)
        self._state.counts.add(rows, drawn[0])
        return drawn

    def send_masks(self, rows: list[int], errors: dict[int, str]) -> None:
        """Make the masks for the next `draw_edited`; `errors` gets a sentence for each row that has no way on."""
        self._masks.send(rows, errors)

    def samples(self, rows: list[int], drawn: Tensor, errors: dict[int, str]) -> Samples:
        """What a recording has drawn for `rows` and for those that padded them: `drawn` as of any of these ways."""
        asked = self._plan(rows).asked
        return Samples(rows, drawn[:2] if asked is None else drawn, asked, errors)

    def advance(self, rows: list[int], tokens: list[int], errors: dict[int, str]) -> list[int]:
        """Lead the grammars of rows on by what was drawn, once the host knows it; before these rows sample again.

        Args:
            rows, tokens: of one step. A row whose logits were not finite comes with some token; what its grammar says
                of it means nothing.
            errors: gets a sentence for each row whose grammar refuses its token.

        Returns:
            Rows whose text is complete.
        """
        return self._masks.advance(rows, tokens, errors)

    def follow(self, rows: list[int], before: list[int]) -> bool:
        """Whether `rows` can be drawn for only when it is known what a step with the rows `before` has drawn."""
        return self._masks.follow(rows, before)

    def draw_mode(self, rows: list[int]) -> DrawMode | None:
        """Which recorded draw is all that these rows need: the op `greedy_sample`, `draw_all` or `draw_edited`."""
        draw_mode = self._plan(rows).draw_mode
        return None if draw_mode is DrawMode.EDITED and not self._state.bans.refresh() else draw_mode

    def _plan(self, rows: list[int]) -> Batch:
        """The plan of this composition of rows; made anew only when it or a row has changed."""
        if self._generation != self._state.generation or self._batch.rows != rows:
            self._batch = Batch(rows, [self._host(row) for row in rows], self.vocab, self.device)
            self._generation = self._state.generation
        return self._batch

    def _host(self, row: int) -> SamplingRow:
        host = self._state.host[row]
        assert host is not None, f"row {row} samples before it has begun"
        return host

    def _draw(self, logits: Tensor, rows: Tensor, past: History, groups: tuple[Group, ...] | None) -> Tensor:
        if groups == ():
            return self.kernels.greedy(logits)
        return self.kernels.draw(logits, rows, past.known, self._state.table, groups)

    def _draw_edited(
        self, logits: Tensor, part: Slice, rows: Tensor, past: History, into: tuple[Tensor, dict[int, str]]
    ) -> None:
        """Draw for a slice and put it into (drawn (2, n), errors), which already tell rows that are not finite."""
        drawn, errors = into
        at = slice(None) if part.at is None else part.at
        rows = rows[at]
        x = logits if part.at is None else logits.index_select(0, part.at)
        if Feature.CALLABLES in part.features:
            x = x.float().clone()
            self._run_callables(x, part, past, errors)
        tables = self._state.tables(part.features)
        if Feature.GRAMMAR in part.features:
            self._masks.send([self._batch.rows[line] for line in part.lines], errors)
            tables = replace(tables, masks=self._masks.table)
        drawn[:, at] = self._draw_from_edited(x, rows, past, tables, part.groups, drawn[1, at])

    def _draw_from_edited(
        self,
        logits: Tensor,
        rows: Tensor,
        past: History,
        tables: EditTables,
        groups: tuple[Group, ...] | None,
        before: Tensor,
    ) -> Tensor:
        """Tokens and their status, (2, n); `before`: where the logits were not finite, (n,)."""
        x = self.kernels.edit(logits, rows, self._state.table, tables, past.tokens, past.known)
        found = self._draw(x, rows, past, groups)
        # What is not finite now, but was, has no token left.
        status = torch.where(before == BAD, BAD, found[1] * EXHAUSTED)
        return torch.stack([found[0].masked_fill(status > 0, 0), status])

    def _run_callables(self, x: Tensor, part: Slice, past: History, errors: dict[int, str]) -> None:
        if Feature.CALLABLES not in part.features:
            return
        for line, of_batch in enumerate(part.lines):
            row = self._batch.rows[of_batch]
            host = self._host(row)
            if host.processors:
                message = processors.run_callables(x[line], row, host, past)
                if message is not None:
                    errors[row] = message

    def _describe(self, logits: Tensor, tokens: Tensor, batch: Batch, top: int) -> Tensor:
        """Log-probabilities for the rows that asked, of the model's own logits: (3 + 2 * top, n), as of `packed`."""
        top = min(self.vocab, top)
        described = tokens.new_zeros(3 + 2 * top, len(tokens))
        for at in batch.reported:
            if at is None:
                return packed(self.kernels.describe(logits, tokens, top))
            described[:, at] = packed(self.kernels.describe(logits.index_select(0, at), tokens[at], top))
        return described
