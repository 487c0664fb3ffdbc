"""What the brain and the muscle say to each other: `StepPlan` down, `StepResult` up.

A plan is a diff. Every rank mirrors the rows (one per running sequence); the plan says which rows begin, which end, and
how many tokens each one computes now. Positions are never in a plan: with plans in flight only the rows know them.
"""

from array import array
from collections.abc import Sequence
from struct import unpack_from
from typing import Self

import msgspec

from quire.messages.params import SamplingParams
from quire.messages.pooling import Pooling


class NewRow(msgspec.Struct, array_like=True):
    """A sequence enters a row: everything a rank must know about it. Also sent when it returns after preemption.

    Attributes:
        row: index of the row, below max_num_seqs.
        token_ids: all tokens known now, the prompt first.
        prompt_len: how many of them are the prompt.
        computed: how many need no computing, because their pages are shared from the prefix cache.
        pages: page numbers per cache group, in token order; index 0 stands for the sequence's first tokens.
        params: how to sample; no strings are needed by a rank.
        seed: noise key of this sequence, 64 bits; (seed, position) fixes the noise of a token.
        eos_token_ids: tokens that end it (empty when ignored).
        bad_words_ids: token sequences that must not be completed.
        max_len: tokens (prompt and generated) at which it ends.
        pooling: what to make of the prompt; it samples nothing then.
    """

    row: int
    token_ids: list[int]
    prompt_len: int
    computed: int
    pages: list[list[int]]
    params: SamplingParams
    seed: int
    eos_token_ids: list[int]
    bad_words_ids: list[list[int]]
    max_len: int
    pooling: Pooling | None = None


# Thousands of these are made per second and none is part of a cycle: the garbage collector need not look at them.
class Grant(msgspec.Struct, array_like=True, gc=False):
    """One row computes `tokens` more tokens in this step.

    Attributes:
        row: the row.
        tokens: how many tokens, at least 1.
        samples: whether the last of them brings a new token (False while a prompt is incomplete).
        new_pages: pages appended per cache group.
    """

    row: int
    tokens: int
    samples: bool
    new_pages: list[list[int]]


class SharedPages(msgspec.Struct, array_like=True, gc=False):
    """Rows whose page tables begin with the same pages, all of them filled by earlier steps.

    Attributes:
        rows: the rows; those that are in no grant of a plan do not count in its step.
        pages: how many pages.
    """

    rows: list[int]
    pages: int


class StepPlan(msgspec.Struct, array_like=True):
    """One step. Ranks apply `released`, then `new` and `shared`, then compute `grants` in order.

    Attributes:
        step: counts up from 1.
        released: rows whose sequence has left.
        new: rows that begin.
        grants: who computes how many tokens.
        shared: per cache group which rows begin alike, no row twice; None where that has not changed.
    """

    step: int
    released: list[int]
    new: list[NewRow]
    grants: list[Grant]
    shared: list[list[SharedPages]] | None = None


class TokenLogprobs(msgspec.Struct, array_like=True, gc=False):
    """Log-probabilities at one position: the chosen token first, then the most probable ones in order.

    A step makes one for each row that asked. They stay packed until somebody reads them, in another process if need be.

    Attributes:
        packed: `ids` as int32, then `logprobs` as float32, in the machine's order.
        rank: rank of the chosen token, 1 is the most probable.
    """

    packed: bytes
    rank: int

    @classmethod
    def of(cls, ids: Sequence[int], logprobs: Sequence[float], rank: int) -> Self:
        """Packed; there are as many of both."""
        return cls(array("i", ids).tobytes() + array("f", logprobs).tobytes(), rank)

    @property
    def ids(self) -> list[int]:
        """Token ids; the first is the chosen (or prompt) token."""
        return array("i", self.packed[: len(self.packed) // 2]).tolist()

    @property
    def logprobs(self) -> list[float]:
        """Natural logarithms, the raw model's (before penalties, temperature and masks), in the order of ids."""
        return array("f", self.packed[len(self.packed) // 2 :]).tolist()

    @property
    def chosen(self) -> float:
        """The first of `logprobs`, without unpacking the others."""
        value: float = unpack_from("f", self.packed, len(self.packed) // 2)[0]
        return value


class StepResult(msgspec.Struct, array_like=True):
    """What a step brought. `rows` and `tokens` run in parallel.

    Attributes:
        step: of the plan.
        rows: rows that sampled, in order of the plan's grants.
        tokens: the token of each.
        bad: rows whose logits were not finite: their token means nothing and the sequence must end with an error.
        logprobs: per row that asked, for its new token.
        prompt_logprobs: per row that asked, one entry for each prompt token computed in this step that has a successor
            in the prompt: the entry describes that successor.
        errors: rows whose own settings failed on the rank (a logits processor that raised), with the sentence to tell.
        complete: rows whose grammar nothing can continue: the token is the last one.
        vectors: per row whose prompt is pooled and was computed to its end, float32 in the machine's order: one vector,
            or one for each token, one after another.
    """

    step: int
    rows: list[int]
    tokens: list[int]
    bad: list[int] = []
    logprobs: dict[int, TokenLogprobs] = {}
    prompt_logprobs: dict[int, list[TokenLogprobs]] = {}
    errors: dict[int, str] = {}
    complete: list[int] = []
    vectors: dict[int, bytes] = {}
