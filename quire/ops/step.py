"""`StepInputs`: the device side of one plan, made once per step and read by every layer."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")

ALIGNMENT = 16
"""Bytes. Kernels are compiled anew for tensors that begin elsewhere than at a multiple of it."""


def aligned(x: Tensor) -> Tensor:
    """`x`, or a copy of it that begins where kernels expect it to."""
    return x.clone() if x.storage_offset() * x.itemsize % ALIGNMENT else x


@dataclass(frozen=True, slots=True)
class SharedInputs:
    """Which sequences begin with the same pages, so that these may be read once for all of them.

    A kernel is right without looking at it: every sequence's own page table names the shared pages, too.

    Attributes:
        number: (sequences,) int32; sequences with the same number begin alike, -1 like nobody.
        tokens: (sequences,) int32, how many tokens: whole pages, none of them computed in this step; the same for all
            sequences with one number, 0 where the number is -1.
    """

    number: Tensor
    tokens: Tensor


@dataclass(frozen=True, slots=True)
class GroupInputs:
    """Where one cache group's state of this step's sequences lies.

    Attributes:
        page_table: (sequences, max_pages) int32; page of each page_size tokens, unused entries 0.
        slots: (tokens,) int64; where each new token's state is written: page * page_size + offset.
        page_size: tokens per page.
        shared: None where no two sequences are known to begin alike.
    """

    page_table: Tensor
    slots: Tensor
    page_size: int
    shared: SharedInputs | None = None

    def cut(self, sequences: slice, tokens: slice) -> "GroupInputs":
        """Those of some neighbouring sequences, which own `tokens`."""
        alike = self.shared
        if alike is not None:
            alike = SharedInputs(aligned(alike.number[sequences]), aligned(alike.tokens[sequences]))
        return GroupInputs(aligned(self.page_table[sequences]), aligned(self.slots[tokens]), self.page_size, alike)


@dataclass(frozen=True, slots=True)
class StepInputs:
    """Tokens of all sequences of a step, packed one after another; sequence i owns query_start[i]:query_start[i+1].

    Attributes:
        token_ids: (tokens,) int64.
        positions: (tokens,) int64, position of each token in its sequence.
        query_start: (sequences + 1,) int32.
        seq_lens: (sequences,) int32, tokens of each sequence once this step is computed.
        logit_rows: (samples,) int64, indices into the packed tokens of those whose logits are wanted.
        groups: one per cache group.
        max_query: host bound on tokens per sequence in this step; chooses kernels and graphs.
        max_seq: host bound on seq_lens.
        singles: so many sequences at the front compute one token each; the host knows of no more.
        kinds: (tokens,) int64, which of two texts a token belongs to; None where there is only one.
        seen: (sequences,) int32, so many tokens at the beginning of each text are seen by its others, where attention
            looks both ways; None where all are.
        ends: hidden states are wanted of each sequence's last token alone. For so many lines kernels of products are
            loaded; those beyond the sequences are nobody's. 0 where states of all tokens are wanted.
        derived: see `once`.
    """

    token_ids: Tensor
    positions: Tensor
    query_start: Tensor
    seq_lens: Tensor
    logit_rows: Tensor
    groups: tuple[GroupInputs, ...]
    max_query: int
    max_seq: int
    singles: int = 0
    kinds: Tensor | None = None
    seen: Tensor | None = None
    ends: int = 0
    derived: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` returns, worked out at the first call with `key` in this step and shared by all later ones.

        For what a kernel derives from the step alone (masks, gather indices), which every layer would repeat.
        """
        if key not in self.derived:
            self.derived[key] = make()
        made: Made = self.derived[key]
        return made

    @property
    def last_tokens(self) -> Tensor:
        """(sequences or `ends`,) int64, where the last token of each is; any for one without tokens, and beyond."""
        return self.once("last tokens", self._last_tokens)

    def _last_tokens(self) -> Tensor:
        found = (self.query_start[1:].long() - 1).clamp_(min=0)
        return torch.nn.functional.pad(found, (0, max(0, self.ends - len(found))))

    def last(self) -> "StepInputs":
        """The step in which each sequence computes its last token alone, the others being in its pages."""
        return self.once("last", self._last)

    def _last(self) -> "StepInputs":
        rows = self.last_tokens[: len(self.seq_lens)]
        return replace(
            self,
            token_ids=self.token_ids[rows],
            positions=self.positions[rows],
            query_start=torch.arange(len(rows) + 1, dtype=torch.int32, device=rows.device),
            groups=tuple(replace(group, slots=group.slots[rows]) for group in self.groups),
            max_query=1,
            singles=0,
            ends=0,
            derived={},
        )

    def parts(self) -> tuple["StepInputs", "StepInputs"]:
        """The `singles` as a step of their own, and all others. Their logits are this step's business alone."""
        return self.once("parts", self._part)

    def _part(self) -> tuple["StepInputs", "StepInputs"]:
        n = self.singles
        front, back = slice(0, n), slice(n, None)
        singles, others = (
            replace(
                self,
                token_ids=aligned(self.token_ids[cut]),
                positions=aligned(self.positions[cut]),
                query_start=starts,
                seq_lens=aligned(self.seq_lens[cut]),
                logit_rows=self.logit_rows[:0],
                groups=tuple(group.cut(cut, cut) for group in self.groups),
                max_query=most,
                singles=0,
                derived={},
            )
            for cut, starts, most in (
                (front, self.query_start[: n + 1], 1),
                (back, self.query_start[n:] - n, self.max_query),
            )
        )
        return singles, others
