"""`Roster`: where every sequence is, and what it holds.

Owns the queues, the resources and the counters; moves sequences between states so that each is in exactly one place and
gives back all it has when it leaves. It decides nothing: the planner and the applying of results do.
"""

from dataclasses import dataclass

from quire.base.logging import get_logger
from quire.messages.state import Layout
from quire.messages.wire import Delta
from quire.scheduler.fair_share import FairShare
from quire.scheduler.limits import Limits
from quire.scheduler.order import ORDERS
from quire.scheduler.queue import Queue
from quire.scheduler.resource import Resource
from quire.scheduler.resources.checkpoints import Checkpoints
from quire.scheduler.resources.grammar import Grammars
from quire.scheduler.resources.pages import Pages
from quire.scheduler.resources.recorded_steps import RecordedSteps
from quire.scheduler.resources.rows import Rows
from quire.scheduler.resources.tokens import Tokens
from quire.scheduler.resources.whole import Whole
from quire.scheduler.sequence import Sequence, State
from quire.scheduler.step_time import StepTimeModel

log = get_logger(__name__)

OWN_FAULT = "the engine failed on this request, and on no other; its log says why"


@dataclass(slots=True)
class Counters:
    """What has happened since the start. Sequences, not requests: `added` is the sum of the ends and those alive.

    Attributes:
        ignored: messages for ids or steps that are not known (any more).
        discarded: tokens sampled for sequences that had ended.
        restarted: sequences recomputed because a page they shared came from a failed row.
        prefix_queries, prefix_hits: prompt tokens looked up and found.
    """

    added: int = 0
    finished: int = 0
    aborted: int = 0
    failed: int = 0
    ignored: int = 0
    discarded: int = 0
    restarted: int = 0
    preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    steps: int = 0

    @property
    def alive(self) -> int:
        """Sequences that have not ended."""
        return self.added - self.finished - self.aborted - self.failed


class Roster:
    """All sequences that are alive or still held by plans in flight.

    Attributes:
        waiting, running: sorted, who is served first stands first.
        leaving: ended, or returning to the queue, but still held by plans in flight.
        alive: per request id the sequences that have not ended.
        failures: news of sequences that have ended because something was raised while they were looked at.
    """

    def __init__(self, limits: Limits, layout: Layout, hash_key: bytes) -> None:
        self.limits = limits
        self.grammars = Grammars()
        self.rows = Rows(limits.max_num_seqs)
        self.step_times = None if limits.itl_target_s is None else StepTimeModel(limits.itl_target_s)
        self.tokens = Tokens(limits.max_num_batched_tokens, self.step_times)
        self.pages = Pages(layout, limits, hash_key)
        self.resources: tuple[Resource, ...] = (self.grammars, self.rows, self.tokens, self.pages)
        if self.pages.state_sizes:
            self.resources = (
                *self.resources,
                Checkpoints(self.pages.state_sizes, self.pages.step, self.pages.interval),
            )
        if limits.whole:
            self.resources = (*self.resources, Whole())
        self.order = ORDERS[limits.policy]()
        self.waiting = Queue(self.order.rank)
        self.running = Queue(self.seniority)
        if limits.recorded_tokens:
            self.resources = (*self.resources, RecordedSteps(limits.recorded_tokens, self.waiting, self.grammars.holds))
        self.leaving: set[Sequence] = set()
        self.alive: dict[str, list[Sequence]] = {}
        self.failures: list[Delta] = []
        self.counters = Counters()
        self.fair_share = FairShare()

    def seniority(self, seq: Sequence) -> tuple[int, ...]:
        """Rank among the running: served first, preempted last. A pinned sequence stands above all."""
        return (not seq.pinned, *self.order.rank(seq))

    def enter(self, id: str, sequences: list[Sequence]) -> None:
        """A new request: the leader queues, its siblings follow when there is something to share."""
        self.alive[id] = sequences
        for seq in sequences:
            self.grammars.enter(seq)
        self.counters.added += len(sequences)
        self.waiting.add(sequences[0])

    def start(self, seq: Sequence) -> None:
        """From the queue to the running; resources have been taken."""
        self.waiting.remove(seq)
        self.fair_share.serve(seq.turn)
        seq.state = State.RUNNING
        self.running.add(seq)

    def register(self, seq: Sequence, step: int) -> None:
        """Let others find the pages that are full by now; `step` is the last plan that fills any of them."""
        if seq.computed < seq.next_check or len(seq.tokens) < seq.next_check:
            return
        self.pages.register(seq, step)
        seq.next_check = min(seq.max_len, self.pages.next_full(seq))
        seq.plain = False
        if seq.followers and self.pages.followers_may_start(seq):
            self._start_followers(seq)

    def preempt(self, seq: Sequence) -> None:
        """Back to the queue; everything is computed again later, except for good pages that are still cached then."""
        self.counters.preemptions += 1
        self.running.remove(seq)
        self.pages.disown(seq)
        seq.preemptions += 1
        seq.pinned = seq.preemptions >= self.limits.max_preemptions
        self._requeue(seq)

    def return_later(self, seq: Sequence) -> None:
        """Back to the queue once no plan holds it; until then results for it are dropped."""
        self._depart(seq, State.RETURNING)

    def end(self, seq: Sequence) -> None:
        """`seq` ends for good, whatever it is doing."""
        siblings = self.alive[seq.id]
        siblings.remove(seq)
        self.grammars.end(seq)
        if not siblings:
            del self.alive[seq.id]
        if seq.state is State.FOLLOWING:
            next(s for s in siblings if seq in s.followers).followers.remove(seq)
            seq.state = State.GONE
            return
        self._start_followers(seq)
        self._depart(seq, State.LEAVING)

    def fail(self, seq: Sequence, told: bool = True) -> None:
        """An exception is being handled that was raised while `seq` was looked at: it ends, and nobody else does.

        Args:
            seq: whose it is.
            told: whether the ranks know its row, or will with the plan that is being made.
        """
        log.exception("request %s, sequence %d: the scheduler failed on it", seq.id, seq.index)
        if seq.state not in (State.WAITING, State.RUNNING):
            return  # it has ended already, and all that is left is to give back what it holds
        row = seq.row
        self.failures.append(Delta(seq.id, seq.index, [], finish_reason="error", error=OWN_FAULT))
        self.counters.failed += 1
        self.end(seq)
        if not told and row in self.rows.left:
            self.rows.left.remove(row)

    def leave(self, seq: Sequence) -> None:
        """Give everything back, unless a plan in flight still holds the sequence."""
        if seq.in_flight:
            return
        self.leaving.discard(seq)
        if seq.state is State.RETURNING:
            self._requeue(seq)
            return
        self._release(seq)
        seq.state = State.GONE

    def _depart(self, seq: Sequence, state: State) -> None:
        if seq.state is State.WAITING:
            self.waiting.remove(seq)
        elif seq.state is State.RUNNING:
            self.running.remove(seq)
        seq.state = state
        self.leaving.add(seq)
        self.leave(seq)

    def _requeue(self, seq: Sequence) -> None:
        self._release(seq)
        seq.state = State.WAITING
        seq.computed = seq.steady_until = seq.next_check = 0
        seq.plain = False
        if not seq.generated:
            seq.prompt_logprobs = None
        self.waiting.add(seq)

    def _release(self, seq: Sequence) -> None:
        for resource in self.resources:
            resource.release(seq)

    def _start_followers(self, seq: Sequence) -> None:
        for follower in seq.followers:
            follower.state = State.WAITING
            self.waiting.add(follower)
        seq.followers = []
