"""`RowState`: how each running row samples, as device tensors, and what the host knows of it.

`begin` writes every field of a row from its request, so nothing of the row's last user can remain. Owned by the
sampler; the host part decides which work a batch needs at all.
"""

import inspect
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Flag, auto

import torch

from quire.messages.params import LogitsProcessor, SamplingParams
from quire.messages.plan import NewRow
from quire.ops.draw import Kind, RowTable
from quire.ops.edit import IN_PROMPT, EditTables
from quire.ops.noise import seed_key
from quire.sampling.bans import Bans, entries
from quire.sampling.sent import sent
from quire.sampling.slots import Content, SlotTable

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy, as in vLLM: dividing by them would leave float32."""

SHORT_K = 1024
"""Up to this top_k only so many candidates are taken from a row; beyond it the row is sorted."""


class Feature(Flag):
    """What changes a row's logits before a token is chosen from them."""

    REPETITION = auto()
    FREQUENCY = auto()
    """Frequency or presence penalty."""
    OFFSET = auto()
    """logit_bias or allowed_token_ids."""
    BANS = auto()
    """bad_words, or min_tokens."""
    CALLABLES = auto()
    GRAMMAR = auto()


PENALTIES = Feature.REPETITION | Feature.FREQUENCY


@dataclass(frozen=True, slots=True)
class Processor:
    """A callable of the user's, and whether it wants the prompt as a first argument."""

    call: LogitsProcessor
    wants_prompt: bool


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """What the host knows of a row.

    Attributes:
        features: what changes its logits.
        edited: whether anything does; read for every row of a new batch, where asking `features` would be slow.
        kind: how its token is drawn; None for the most probable one.
        top_k: candidates kept.
        min_p: whether it has one.
        logprobs: how many to report, or None.
        prompt_len: tokens of the prompt.
        processors: the user's callables.
    """

    features: Feature
    edited: bool
    kind: Kind | None
    top_k: int
    min_p: bool
    logprobs: int | None
    prompt_len: int
    processors: tuple[Processor, ...]


class RowState:
    """Sampling state of all rows.

    Args:
        max_rows: rows are below it.
        vocab: size of the vocabulary.
        device: where logits come from.

    Attributes:
        host: per row, or None while the row is not in use.
        table: how each row draws, on the device.
        wanted: (max_rows,) int32, how many log-probabilities each row wants beside the chosen token's, or -1.
        generation: changes whenever a row begins or ends.
    """

    def __init__(self, max_rows: int, vocab: int, device: torch.device) -> None:
        self.vocab = vocab
        self.device = device
        self.host: list[SamplingRow | None] = [None] * max_rows
        self.generation = 0
        self.counts = SlotTable(max_rows, vocab, torch.int32, device)
        self.offsets = SlotTable(max_rows, vocab, torch.float32, device)
        self.bans = Bans(max_rows, device)
        # A row that is not in use is greedy: recorded steps are padded with such a row.
        numbers = torch.tensor([[0.0, 1.0, -math.inf, 1.0, 0.0, 0.0]]).repeat(max_rows, 1)
        integers = torch.tensor([[vocab, 0]]).repeat(max_rows, 1)
        self.table = RowTable(numbers.to(device), integers.to(device))
        self.wanted = torch.full((max_rows,), -1, dtype=torch.int32, device=device)

    def stay(self) -> EditTables:
        """All tables, from now on where they are: what recordings read. `Bans.refresh` brings the bans up to date."""
        self.counts.stay()
        self.offsets.stay()
        return EditTables(self.offsets.slots, self.counts.slots, self.bans.lasting())

    def begin(self, *rows: NewRow) -> None:
        """Sequences enter rows, each another one: every field of these rows is written.

        Raises:
            IndexError: the row has penalties and a token outside the vocabulary.
        """
        if not rows:
            return
        self.end(*(new.row for new in rows))
        features = [self._begin(new) for new in rows]
        pairs = list(zip(rows, features, strict=True))
        self.counts.lend([_counts(new, found) for new, found in pairs if found & PENALTIES])
        self.offsets.lend([_offsets(new, self.vocab) for new, found in pairs if Feature.OFFSET in found])
        self._write(rows)

    def _begin(self, new: NewRow) -> Feature:
        """All but what tables hold, which is written for all new rows at once. Returns the row's features."""
        params = new.params
        features = _edits(params)
        if self._begin_bans(new):
            features |= Feature.BANS
        processors = tuple(Processor(call, _wants_prompt(call)) for call in params.logits_processors or [])
        self.host[new.row] = SamplingRow(
            features=features,
            edited=bool(features),
            kind=_kind(params, self.vocab),
            top_k=_top_k(params, self.vocab),
            min_p=params.min_p > 0,
            logprobs=params.logprobs,
            prompt_len=new.prompt_len,
            processors=processors,
        )
        return features

    def end(self, *rows: int) -> None:
        """The sequences of `rows` have left. Ending a row that is not in use does nothing."""
        self.generation += 1
        for row in rows:
            self.host[row] = None
            self.bans.drop(row)
        self.counts.give_back(rows)
        self.offsets.give_back(rows)

    def tables(self, features: Feature) -> EditTables:
        """What edits the logits of a batch in which some row has `features`."""
        return EditTables(
            offsets=self.offsets.slots if Feature.OFFSET in features else None,
            counts=self.counts.slots if features & PENALTIES else None,
            bans=self.bans.table() if Feature.BANS in features else None,
        )

    def _write(self, rows: Sequence[NewRow]) -> None:
        """The lines of the table, in the order of its columns, queued behind the work before it without waiting."""
        numbers = [_numbers(new.params, greedy=_kind(new.params, self.vocab) is None) for new in rows]
        integers = [[new.row, _top_k(new.params, self.vocab), seed_key(new.seed), _wanted(new.params)] for new in rows]
        arrived = sent(torch.tensor(integers), self.device)
        self.table.integers.index_copy_(0, arrived[:, 0], arrived[:, 1:3])
        self.wanted.index_copy_(0, arrived[:, 0], arrived[:, 3].int())
        self.table.numbers.index_copy_(0, arrived[:, 0], sent(torch.tensor(numbers), self.device))

    def _begin_bans(self, new: NewRow) -> bool:
        """Whether the row has any."""
        early = {*new.eos_token_ids, *(new.params.stop_token_ids or [])} if new.params.min_tokens else set()
        found = entries(new.bad_words_ids, early, new.prompt_len + new.params.min_tokens, self.vocab)
        if found is not None:
            self.bans.set(new.row, found)
        return found is not None


def _kind(params: SamplingParams, vocab: int) -> Kind | None:
    """How the token is drawn. top_k=1 is greedy, and a greedy row has no restrictions."""
    if params.temperature < GREEDY_BELOW or params.top_k == 1:
        return None
    if 0 < params.top_k < vocab:
        return Kind.SHORT if params.top_k <= SHORT_K else Kind.SORTED
    return Kind.NUCLEUS if params.top_p < 1 else Kind.PLAIN


def _top_k(params: SamplingParams, vocab: int) -> int:
    """Candidates kept; all where it says nothing."""
    return params.top_k if 0 < params.top_k < vocab else vocab


def _wanted(params: SamplingParams) -> int:
    """Log-probabilities beside the chosen token's; -1 for none at all."""
    return -1 if params.logprobs is None else params.logprobs


def _numbers(params: SamplingParams, *, greedy: bool) -> list[float]:
    """A row's line of `RowTable.numbers`."""
    return [
        0.0 if greedy else params.temperature,
        params.top_p,
        math.log(params.min_p) if params.min_p > 0 else -math.inf,
        params.repetition_penalty,
        params.frequency_penalty,
        params.presence_penalty,
    ]


def _edits(params: SamplingParams) -> Feature:
    """What changes the row's logits, but for bans."""
    features = Feature(0)
    if params.repetition_penalty != 1:
        features |= Feature.REPETITION
    if params.frequency_penalty or params.presence_penalty:
        features |= Feature.FREQUENCY
    if params.logit_bias or params.allowed_token_ids is not None:
        features |= Feature.OFFSET
    if params.logits_processors:
        features |= Feature.CALLABLES
    if params.structured_outputs is not None:
        features |= Feature.GRAMMAR
    return features


def _counts(new: NewRow, features: Feature) -> Content:
    """Penalty counts of all tokens known, so that a sequence that returns has lost nothing."""
    prompt = set(new.token_ids[: new.prompt_len]) if Feature.REPETITION in features else ()
    marks = array("i", [IN_PROMPT]) * len(prompt)
    return Content(new.row, 0, array("q", prompt), marks, counted=array("q", new.token_ids[new.prompt_len :]))


def _offsets(new: NewRow, vocab: int) -> Content:
    """The bias; with allowed tokens -inf at all others. Tokens outside the vocabulary are left out."""
    bias, allowed = new.params.logit_bias or {}, new.params.allowed_token_ids
    held = bias if allowed is None else {token: bias.get(token, 0.0) for token in allowed}
    held = {token: value for token, value in held.items() if 0 <= token < vocab}
    fill = 0.0 if allowed is None else -math.inf
    return Content(new.row, fill, array("q", held), array("f", held.values()))


def _wants_prompt(call: LogitsProcessor) -> bool:
    """Whether the callable has three arguments without default: prompt, generated, logits."""
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is p.empty for p in parameters) == 3
