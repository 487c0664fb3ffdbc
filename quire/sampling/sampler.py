"""`Sampler`: from a batch of logits to one token per row.

A batch in which every row is greedy costs one arg-max. Everything else is vectorised over rows, in slices; the result
of a row depends on its own logits, settings, history and (seed, position) only. Called by the runner of the rank that
samples; it knows rows by index and nothing of sequences.
"""

import torch
from torch import Tensor

from quire.messages.plan import NewRow
from quire.ops.greedy import greedy_sample
from quire.sampling import batch as batches
from quire.sampling import processors
from quire.sampling.batch import Batch, Slice
from quire.sampling.draw import Draw, draw
from quire.sampling.logprobs import describe, prompt_logprobs
from quire.sampling.masks import Masks
from quire.sampling.noise import row_keys
from quire.sampling.processors import History
from quire.sampling.rows import EDITS, IN_PROMPT, Feature, HostRow, RowState, Settings
from quire.sampling.samples import BAD, EXHAUSTED, OK, Reported, Samples
from quire.sampling.topk import drop_improbable
from quire.structured.store import GrammarStore

__all__ = ["Sampler", "Samples", "prompt_logprobs"]

_BYTES_PER_ENTRY = 64
"""Temporaries per logit of a slice at the worst moment, the sort of whole rows."""

_BYTES_PER_ROW_ENTRY = 8
"""Tables that a row may own per token of the vocabulary: penalty counts, and bias with allowed tokens."""


class Sampler:
    """Sampling state of all rows, and the draw.

    Args:
        max_rows: rows are below it.
        vocab_size: width of the logits.
        max_len: longest sequence in tokens.
        device: where logits come from.
        grammars: compiled ones; a store of its own if None.
    """

    def __init__(
        self,
        max_rows: int,
        vocab_size: int,
        max_len: int,
        device: torch.device,
        grammars: GrammarStore | None = None,
    ) -> None:
        assert max_len < IN_PROMPT, "penalty counts hold numbers below 2**30"
        self.vocab = vocab_size
        self.device = device
        self._state = RowState(max_rows, vocab_size, device)
        self._masks = Masks(max_rows, vocab_size, device, GrammarStore() if grammars is None else grammars)
        self._ids = torch.arange(vocab_size, dtype=torch.int32, device=device)
        self._batch = Batch([], False, (), (), None)
        self._generation = -1

    def workspace_bytes(self, rows: int) -> int:
        """Most memory that sampling `rows` rows at once takes beyond their logits, the rows' own tables included."""
        entries = min(rows, batches.slice_rows(self.vocab)) * self.vocab
        return entries * _BYTES_PER_ENTRY + (rows + 1) * self.vocab * _BYTES_PER_ROW_ENTRY

    @torch.inference_mode()
    def begin(self, new: NewRow) -> None:
        """A sequence enters a row; everything the row held before is overwritten."""
        self._state.begin(new)
        self._masks.end(new.row)
        self._masks.begin(new)

    @torch.inference_mode()
    def end(self, row: int) -> None:
        """The sequence of `row` has left."""
        self._state.end(row)
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
        if batch.plain:
            return Samples(batch.rows, greedy_sample(logits))
        past = History(history, known)
        errors: dict[int, str] = {}
        top, tokens = _arg_max(logits, batch.greedy)
        bad = ~top.isfinite()
        empty = torch.zeros_like(bad)
        for part in batch.slices:
            at = part.at
            if at is None:
                tokens, empty = self._sample_slice(logits, part, rows_device, past, errors)
            else:
                tokens[at], empty[at] = self._sample_slice(
                    logits.index_select(0, at), part, rows_device[at], past, errors
                )
        status = torch.where(bad, BAD, torch.where(empty, EXHAUSTED, OK))
        tokens = tokens.masked_fill(status != OK, 0)
        if batch.counted is not None:
            self._state.counts.add(rows_device[batch.counted], tokens[batch.counted])
        return Samples(batch.rows, torch.stack([tokens, status]), _report(logits, tokens, batch), errors)

    def advance(self, rows: list[int], tokens: list[int], errors: dict[int, str]) -> list[int]:
        """Lead the grammars of rows on by what was drawn, once the host knows it; before these rows sample again.

        Args:
            rows, tokens: of one step, with its rows that are lost left out.
            errors: gets a sentence for each row whose grammar refuses its token.

        Returns:
            Rows whose text is complete.
        """
        return self._masks.advance(rows, tokens, errors)

    def plain(self, rows: list[int]) -> bool:
        """Whether `greedy_sample` is all that these rows need."""
        return self._plan(rows).plain

    def _plan(self, rows: list[int]) -> Batch:
        """The plan of this composition of rows; made anew only when it or a row has changed."""
        if self._generation != self._state.generation or self._batch.rows != rows:
            self._batch = batches.make(rows, [self._host(row) for row in rows], self.vocab, self.device)
            self._generation = self._state.generation
        return self._batch

    def _host(self, row: int) -> HostRow:
        host = self._state.host[row]
        assert host is not None, f"row {row} samples before it has begun"
        return host

    def _sample_slice(
        self, logits: Tensor, part: Slice, rows: Tensor, past: History, errors: dict[int, str]
    ) -> tuple[Tensor, Tensor]:
        """Tokens (m,) int64, and (m,) bool: no token was left. logits (m, vocab), rows (m,) int64."""
        settings = self._state.settings(rows)
        x = logits.float()
        if part.features & EDITS:
            # Copied even if it was already: one more pass is cheap beside the edits, and `logits` stays as it is.
            x = x.clone()
            self._run_callables(x, part, past, errors)
            processors.apply(x, part.features, settings, rows, self._state, past)
            if Feature.GRAMMAR in part.features:
                self._masks.apply(x, [self._batch.rows[line] for line in part.lines], errors)
        top, tokens = _arg_max(x, not part.all_random)
        if part.groups:
            tokens = self._draw(x, top, tokens, part, settings, past.known[rows])
        return tokens, top == -torch.inf

    def _draw(
        self, x: Tensor, top: Tensor, tokens: Tensor, part: Slice, settings: Settings, positions: Tensor
    ) -> Tensor:
        # The maximum becomes 0 before the division, so that no temperature can make an infinity.
        x = (x - top.unsqueeze(1)).div_(settings.temperature)
        if Feature.MIN_P in part.features:
            drop_improbable(x, settings.log_min_p)
        every = Draw(x, row_keys(settings.seeds, positions.long()), settings.top_k, settings.top_p)
        for group in part.groups:
            if group.at is None:
                return draw(every, group.kind, group.width, self._ids)
            tokens[group.at] = draw(every.pick(group.at), group.kind, group.width, self._ids)
        return tokens

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


def _arg_max(x: Tensor, wanted: bool) -> tuple[Tensor, Tensor]:
    """Maximum of each row, NaN if the row holds one, and the first token that has it; zeros if that is not `wanted`."""
    if wanted:
        top, tokens = x.max(-1)
        return top, tokens
    top = x.amax(-1)
    return top, torch.zeros_like(top, dtype=torch.int64)


def _report(logits: Tensor, tokens: Tensor, batch: Batch) -> list[Reported]:
    """Log-probabilities of the rows that asked, from the model's own logits."""
    reported = []
    for lines, counts in batch.reported:
        at = torch.tensor(lines, device=logits.device)
        found = describe(logits.index_select(0, at), tokens[at], max(counts))
        reported.append(Reported([batch.rows[i] for i in lines], counts, found))
    return reported
