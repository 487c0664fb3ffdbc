"""`Sequence`: a request being served, and its counters.

    known tokens                      │ expected          tokens:   values the host knows
    ├──────────── computed ───────────┼──┤                expected: samples of plans in flight, values not known yet
    └─ pages hold these ──────────────┘  └ pending ...    computed: handed to the device, in flight or done

Owned by the scheduler; resources keep what they gave to it here.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from quire.kvcache.hits import Hit
from quire.kvcache.prefix import HashChain
from quire.kvcache.table import PageTable
from quire.messages.params import SamplingParams
from quire.messages.plan import Grant, TokenLogprobs
from quire.messages.request import Request

NO_GRANT = Grant(-1, 0, False, [])


class State(Enum):
    """Where a sequence is; always exactly one of these."""

    FOLLOWING = "waits for the first sequence of its request, whose pages it will share"
    WAITING = "in the queue; holds nothing"
    RUNNING = "has a row and pages"
    RETURNING = "will go back to the queue when its last plan in flight is in"
    LEAVING = "has ended; gives everything back when its last plan in flight is in"
    GONE = "holds nothing and is known to nobody"


@dataclass(eq=False, slots=True)
class Sequence:
    """One of the n sequences of a request.

    Attributes:
        arrival: unique, in order of arrival; siblings count up from the leader.
        turn: when its owner is served, see `FairShare`; the same for all sequences of a request.
        params: as the ranks get them (prompt_logprobs only while the leader still owes them).
        max_len: tokens (prompt and generated) at which it ends.
        stops: every token that may end it.
        chain: whether it may be planned while its last sample is known to the device only.
        in_flight: plans that hold it and are not committed.
        steady_until: while `computed` is below, it advances by one token a step and no resource needs to be asked.
        next_check: number of known tokens at which `commit` must look closer.
        plain: nothing but the token and its log-probabilities is to be told about a sample.
        grammar: key of the grammar that its text must keep to, if any.
        times_skipped: how often others were admitted before it because it did not fit.
        unconfirmed: pages it filled since its last finite sample: (step, group, page).
        pooled: it brings a vector, and no token.
        checkpoints: numbers of tokens after which its recurrent state is kept, ascending.
        fresh: pages taken for the plan that is being made, per group.
        steady_grant: the grant of a steady step, made once per row.
    """

    request: Request
    index: int
    arrival: int
    arrived: float
    turn: int
    params: SamplingParams
    seed: int
    max_len: int
    stops: frozenset[int]
    chain: bool
    grammar: str | None
    tokens: list[int]
    state: State = State.WAITING
    computed: int = 0
    expected: int = 0
    in_flight: int = 0
    row: int = -1
    steady_until: int = 0
    steady_grant: Grant = NO_GRANT
    next_check: int = 0
    plain: bool = False
    preemptions: int = 0
    pinned: bool = False
    yielding: bool = False
    times_skipped: int = 0
    pooled: bool = False
    hit: Hit | None = None
    cached_tokens: int | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    followers: "list[Sequence]" = field(default_factory=list)
    unconfirmed: deque[tuple[int, int, int]] = field(default_factory=deque)
    tables: list[PageTable] = field(default_factory=list)
    chains: dict[int, HashChain] = field(default_factory=dict)
    registered: int = 0
    checkpoints: list[int] = field(default_factory=list)
    fresh: list[list[int]] = field(default_factory=list)

    @property
    def id(self) -> str:
        """The id of its request."""
        return self.request.id

    @property
    def prompt_len(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.token_ids)

    @property
    def generated(self) -> int:
        """Tokens generated and committed."""
        return len(self.tokens) - self.prompt_len

    @property
    def pending(self) -> int:
        """Tokens known, or sure to be known by then, and not computed. No prefill, no decode: only this."""
        return len(self.tokens) + self.expected - self.computed

    @property
    def computes_all(self) -> bool:
        """Whether no token of the prompt may come from the prefix cache."""
        pooling = self.request.pooling
        return self.params.prompt_logprobs is not None or (pooling is not None and pooling.every_token)

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether every prompt token must be computed, because log-probabilities of the prompt are still owed."""
        return self.params.prompt_logprobs is not None

    def may_advance(self) -> bool:
        """Whether a plan could use it now: something is pending, known to whoever needs it, and it is not sure to end.

        A token at `max_len - 1` is the last; it is sampled and never computed.
        """
        if self.expected and (not self.chain or len(self.tokens) + self.expected >= self.max_len):
            return False
        return self.pending > 0
