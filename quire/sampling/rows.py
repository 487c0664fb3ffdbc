"""`RowState`: how each running row samples, as device tensors, and what the host knows of it.

`begin` writes every field of a row from its request, so nothing of the row's last user can remain. Owned by the
sampler; the host part decides which work a batch needs at all.
"""

import inspect
import math
from dataclasses import dataclass
from enum import Flag, auto

import torch
from torch import Tensor

from quire.messages.params import LogitsProcessor, SamplingParams
from quire.messages.plan import NewRow
from quire.sampling.bans import Bans, entries
from quire.sampling.noise import seed_key
from quire.sampling.slots import SlotTable

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy, as in vLLM: dividing by them would leave float32."""

SHORT_K = 1024
"""Up to this top_k only so many candidates are taken from a row; beyond it the row is sorted."""

IN_PROMPT = 1 << 30
"""Bit of a penalty count that says: this token is in the prompt. The bits below count occurrences in the output."""


class Feature(Flag):
    """What a row needs beyond the arg-max of its logits."""

    RANDOM = auto()
    MIN_P = auto()
    SHORT = auto()
    """Few candidates suffice: top_k up to SHORT_K."""
    NUCLEUS = auto()
    """top_p without top_k."""
    SORTED = auto()
    """A large top_k."""
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
EDITS = PENALTIES | Feature.OFFSET | Feature.BANS | Feature.CALLABLES | Feature.GRAMMAR
"""Features that change logits before the arg-max of even a greedy row."""


@dataclass(frozen=True, slots=True)
class Processor:
    """A callable of the user's, and whether it wants the prompt as a first argument."""

    call: LogitsProcessor
    wants_prompt: bool


@dataclass(frozen=True, slots=True)
class HostRow:
    """What the host knows of a row.

    Attributes:
        features: what it needs.
        edited, random, counted: whether its logits are edited, its token is drawn, its tokens are counted; read for
            every row of a new batch, where asking `features` would be slow.
        top_k: candidates kept, when SHORT.
        logprobs: how many to report, or None.
        prompt_len: tokens of the prompt.
        processors: the user's callables.
    """

    features: Feature
    edited: bool
    random: bool
    counted: bool
    top_k: int
    logprobs: int | None
    prompt_len: int
    processors: tuple[Processor, ...]


@dataclass(frozen=True, slots=True)
class Settings:
    """The numbers of the rows of one batch; each (n, 1): float32, `top_k` int64, `seeds` (n,) int64."""

    temperature: Tensor
    top_p: Tensor
    log_min_p: Tensor
    repetition: Tensor
    frequency: Tensor
    presence: Tensor
    top_k: Tensor
    seeds: Tensor


class RowState:
    """Sampling state of all rows.

    Args:
        max_rows: rows are below it.
        vocab: size of the vocabulary.
        device: where logits come from.

    Attributes:
        host: per row, or None while the row is not in use.
        generation: changes whenever a row begins or ends.
    """

    def __init__(self, max_rows: int, vocab: int, device: torch.device) -> None:
        self.vocab = vocab
        self.device = device
        self.host: list[HostRow | None] = [None] * max_rows
        self.generation = 0
        self.counts = SlotTable(max_rows, vocab, torch.int32, device)
        self.offsets = SlotTable(max_rows, vocab, torch.float32, device)
        self.bans = Bans(max_rows, device)
        self._numbers = torch.zeros(max_rows, 6, device=device)
        self._integers = torch.zeros(max_rows, 2, dtype=torch.int64, device=device)

    def begin(self, new: NewRow) -> None:
        """A sequence enters `new.row`: every field of the row is written."""
        self.end(new.row)
        params = new.params
        features = _draw_features(params, self.vocab) | _penalty_features(params)
        greedy = Feature.RANDOM not in features
        self._numbers[new.row] = torch.tensor(
            [
                1.0 if greedy else params.temperature,
                params.top_p,
                math.log(params.min_p) if params.min_p > 0 else -math.inf,
                params.repetition_penalty,
                params.frequency_penalty,
                params.presence_penalty,
            ]
        )
        top_k = params.top_k if 0 < params.top_k < self.vocab else self.vocab
        self._integers[new.row] = torch.tensor([top_k, seed_key(new.seed)])
        features |= self._begin_counts(new, features) | self._begin_offsets(new) | self._begin_bans(new)
        processors = tuple(Processor(call, _wants_prompt(call)) for call in params.logits_processors or [])
        if processors:
            features |= Feature.CALLABLES
        if params.structured_outputs is not None:
            features |= Feature.GRAMMAR
        self.host[new.row] = HostRow(
            features=features,
            edited=bool(features & EDITS),
            random=not greedy,
            counted=bool(features & PENALTIES),
            top_k=top_k,
            logprobs=params.logprobs,
            prompt_len=new.prompt_len,
            processors=processors,
        )

    def end(self, row: int) -> None:
        """The sequence of `row` has left. Ending a row that is not in use does nothing."""
        self.generation += 1
        self.host[row] = None
        self.counts.give_back(row)
        self.offsets.give_back(row)
        self.bans.drop(row)

    def settings(self, rows: Tensor) -> Settings:
        """The numbers of `rows`, (n,) int64."""
        numbers = self._numbers[rows].unsqueeze(2)
        integers = self._integers[rows]
        return Settings(
            temperature=numbers[:, 0],
            top_p=numbers[:, 1],
            log_min_p=numbers[:, 2],
            repetition=numbers[:, 3],
            frequency=numbers[:, 4],
            presence=numbers[:, 5],
            top_k=integers[:, :1],
            seeds=integers[:, 1],
        )

    def _begin_counts(self, new: NewRow, features: Feature) -> Feature:
        """Rebuild penalty counts from all tokens known, so that a sequence that returns has lost nothing."""
        if not features & PENALTIES:
            return Feature(0)
        counts = torch.bincount(torch.tensor(new.token_ids[new.prompt_len :], dtype=torch.int64), minlength=self.vocab)
        if Feature.REPETITION in features:
            counts[torch.tensor(new.token_ids[: new.prompt_len], dtype=torch.int64)] |= IN_PROMPT
        self.counts.lend(new.row, counts)
        return Feature(0)

    def _begin_offsets(self, new: NewRow) -> Feature:
        bias, allowed = new.params.logit_bias, new.params.allowed_token_ids
        if not bias and allowed is None:
            return Feature(0)
        offset = torch.zeros(self.vocab)
        for token, value in (bias or {}).items():
            if 0 <= token < self.vocab:
                offset[token] = value
        if allowed is not None:
            mask = torch.ones(self.vocab, dtype=torch.bool)
            mask[[token for token in allowed if 0 <= token < self.vocab]] = False
            offset.masked_fill_(mask, -torch.inf)
        self.offsets.lend(new.row, offset)
        return Feature.OFFSET

    def _begin_bans(self, new: NewRow) -> Feature:
        early = {*new.eos_token_ids, *(new.params.stop_token_ids or [])} if new.params.min_tokens else set()
        found = entries(new.bad_words_ids, early, new.prompt_len + new.params.min_tokens, self.vocab)
        if found is None:
            return Feature(0)
        self.bans.set(new.row, found)
        return Feature.BANS


def _draw_features(params: SamplingParams, vocab: int) -> Feature:
    """How the token is drawn. top_k=1 is greedy, and a greedy row has no restrictions."""
    if params.temperature < GREEDY_BELOW or params.top_k == 1:
        return Feature(0)
    features = Feature.RANDOM
    if params.min_p > 0:
        features |= Feature.MIN_P
    if 0 < params.top_k < vocab:
        features |= Feature.SHORT if params.top_k <= SHORT_K else Feature.SORTED
    elif params.top_p < 1:
        features |= Feature.NUCLEUS
    return features


def _penalty_features(params: SamplingParams) -> Feature:
    features = Feature(0)
    if params.repetition_penalty != 1:
        features |= Feature.REPETITION
    if params.frequency_penalty or params.presence_penalty:
        features |= Feature.FREQUENCY
    return features


def _wants_prompt(call: LogitsProcessor) -> bool:
    """Whether the callable has three arguments without default: prompt, generated, logits."""
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is p.empty for p in parameters) == 3
