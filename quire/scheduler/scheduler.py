"""`Scheduler`: asks resources, makes plans, settles results.

There is no prefill and no decode: a sequence has known tokens and computed tokens, and each step lets it catch up by as
many as all resources offer. Chunked prompts, prefix hits and preemption are that one rule. Pure: no clock, no tensor,
no I/O; the engine core calls `add`, `plan`, `commit`, `abort`, `finish` from one thread.
"""

import random
import secrets
from collections import deque
from dataclasses import dataclass
from itertools import count

from quire.base.errors import RequestError
from quire.messages.plan import Grant, StepPlan, StepResult
from quire.messages.request import Request
from quire.messages.state import Layout
from quire.messages.wire import Delta, Stats
from quire.scheduler.ending import NOT_FINITE, Ending, ending
from quire.scheduler.flight import Draft
from quire.scheduler.intake import make_sequences, max_len_of, seed_of, without_prompt_logprobs
from quire.scheduler.limits import Limits
from quire.scheduler.order import ORDERS
from quire.scheduler.queue import Queue
from quire.scheduler.resource import Resource
from quire.scheduler.resources.pages import Pages
from quire.scheduler.resources.rows import Rows
from quire.scheduler.resources.tokens import Tokens
from quire.scheduler.sequence import Sequence, State


@dataclass(slots=True)
class Counters:
    """What has happened since the start. Sequences, not requests: `added` is the sum of the ends and those alive.

    Attributes:
        ignored: messages for ids or steps that are not known (any more).
        discarded: tokens sampled for sequences that had ended.
        restarted: sequences recomputed because a page they shared came from a failed row.
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


class Scheduler:
    """The policy of one engine.

    Args:
        limits: numbers to keep to.
        layout: pages per cache group, and max_model_len.
        hash_key: of the prefix cache; random unless a run is replayed.
        seed: of the generator that draws seeds for requests that bring none.
    """

    def __init__(self, limits: Limits, layout: Layout, *, hash_key: bytes | None = None, seed: int = 0) -> None:
        self.limits = limits
        self.max_model_len = layout.max_model_len
        self.rows = Rows(limits.max_num_seqs)
        self.tokens = Tokens(limits.max_num_batched_tokens)
        self.pages = Pages(layout, limits, secrets.token_bytes(32) if hash_key is None else hash_key)
        self.resources: tuple[Resource, ...] = (self.rows, self.tokens, self.pages)
        self.order = ORDERS[limits.policy]()
        self.waiting = Queue(self.order.rank)
        self.running = Queue(self._seniority)
        self.leaving: set[Sequence] = set()  # ended or returning, but still held by plans in flight
        self.alive: dict[str, list[Sequence]] = {}  # per request the sequences that have not ended
        self.flights: deque[Draft] = deque()
        self.counters = Counters()
        self._yielding: list[Sequence] = []  # not planned, so that they can be preempted when plans in flight are in
        self._step = 0
        self._step_tokens = 0
        self._arrivals = count()
        self._draw = random.Random(seed).getrandbits

    # ── What comes from outside ─────────────────────────────────────────────────────────────

    @property
    def has_work(self) -> bool:
        """Whether a sequence is alive or a plan is in flight."""
        return bool(self.alive or self.flights)

    def add(self, request: Request, now: float) -> None:
        """Queue the n sequences of a request. `now` in seconds, from the same clock as for `plan`.

        Raises:
            RequestError: with code context_length_exceeded or kv_capacity, when it can never be served.
        """
        assert request.id not in self.alive, f"request id {request.id!r} is in use"
        max_len = max_len_of(request, self.max_model_len)
        if not self.pages.can_ever_hold(max_len):
            raise RequestError(
                f"{max_len} tokens (prompt and max_tokens) do not fit the memory for pages, even alone; shorten the "
                f"prompt, lower max_tokens, or give the engine more memory for pages",
                param="max_tokens",
                code="kv_capacity",
            )
        seed = seed_of(request, self._draw)
        sequences = make_sequences(request, self.limits, max_len, seed, now, self._arrivals)
        self.alive[request.id] = sequences
        self.counters.added += len(sequences)
        self.waiting.add(sequences[0])

    def abort(self, id: str) -> None:
        """End a request at any moment; nothing more is said about it. An unknown id is only counted."""
        sequences = self.alive.get(id)
        if sequences is None:
            self.counters.ignored += 1
            return
        for seq in tuple(sequences):
            self.counters.aborted += 1
            self._end(seq)

    def finish(self, id: str, index: int, tokens: int) -> bool:
        """The front end ended sequence `index` of a request after `tokens` generated tokens; it hears no more of it.

        Returns whether the sequence was alive; if not, its last delta has already left.
        """
        seq = next((s for s in self.alive.get(id, ()) if s.index == index), None)
        if seq is None:
            self.counters.ignored += 1
            return False
        self.counters.finished += 1
        self.counters.discarded += max(0, seq.generated - tokens)
        self._end(seq)
        return True

    def reset_prefix_cache(self) -> None:
        """Forget every cached page that no sequence uses."""
        self.pages.reset()

    def stats(self) -> Stats:
        """Gauges and counters for /metrics."""
        c = self.counters
        return Stats(
            running=len(self.running),
            waiting=c.added - c.finished - c.aborted - c.failed - len(self.running),
            kv_usage=self.pages.usage(),
            preemptions=c.preemptions,
            prefix_queries=c.prefix_queries,
            prefix_hits=c.prefix_hits,
            steps=c.steps,
            step_tokens=self._step_tokens,
        )

    # ── Making a plan ───────────────────────────────────────────────────────────────────────

    def plan(self, now: float) -> StepPlan | None:
        """Who computes how many tokens next; None when there is nothing to do before a result or a request comes in."""
        for resource in self.resources:
            resource.new_step()
        draft = Draft(self._step + 1)
        self._continue_running(draft)
        if self.waiting and self.rows.free and self.tokens.left:
            self._admit_waiting(draft, now)
        if not draft.grants:
            return None
        self._step += 1
        self._hand_over(draft)
        return draft.plan(self.rows.drain())

    def _continue_running(self, draft: Draft) -> None:
        for seq in tuple(self.running):
            if seq.computed < seq.steady_until and seq.state is State.RUNNING and not seq.yielding:
                if (seq.chain or not seq.expected) and self.tokens.left:
                    self._take_steady(seq, draft)
            elif seq.state is State.RUNNING and seq.may_advance():
                self._advance(seq, draft)
        for seq in self._yielding:
            seq.yielding = False
        self._yielding.clear()

    def _take_steady(self, seq: Sequence, draft: Draft) -> None:
        """One more token of a sequence for which no resource needs to be asked."""
        assert seq.steady_grant is not None
        self.tokens.left -= 1
        seq.computed += 1
        seq.expected += 1
        seq.in_flight += 1
        draft.tokens += 1
        draft.grants.append(seq.steady_grant)
        draft.sampling.append(seq)

    def _advance(self, seq: Sequence, draft: Draft) -> None:
        """Grant what all resources offer, making room where pages are missing."""
        if seq.yielding:
            return
        self.pages.trim(seq)
        while not (tokens := self._offer(seq)):
            if not self._make_room(seq):
                return
        self._take(seq, tokens, draft)

    def _offer(self, seq: Sequence) -> int:
        tokens = seq.pending
        for resource in self.resources:
            tokens = resource.offer(seq, tokens)
            if not tokens:
                return 0
        return tokens

    def _take(self, seq: Sequence, tokens: int, draft: Draft) -> None:
        for resource in self.resources:
            resource.take(seq, tokens)
        if seq.state is State.WAITING:
            draft.begin(seq)
        draft.grant(seq, tokens)
        if seq.pending == 1:
            # It advances token by token now; the token at max_len - 1 is sampled and never computed.
            seq.steady_until = min(self.pages.room(seq), seq.max_len - 1)
            if seq.steady_grant is None:
                seq.steady_grant = Grant(seq.row, 1, True, [[] for _ in seq.tables])

    def _make_room(self, seq: Sequence) -> bool:
        """Win back pages from the sequence that ranks last. Returns whether it is worth asking again.

        If plans in flight hold that sequence it is not planned any more, so that it can be preempted once they are in;
        `seq` waits until then.
        """
        if not self.tokens.left or self.pages.offer(seq, 1):
            return False  # something else is missing; preemption would not help
        victim = next((s for s in reversed(self.running.items) if not s.pinned), None)
        if victim is None or self._seniority(victim) < self._seniority(seq):
            return False
        if victim.in_flight:
            victim.yielding = True
            self._yielding.append(victim)
            return False
        self._preempt(victim)
        return victim is not seq

    def _preempt(self, seq: Sequence) -> None:
        """Back to the queue; everything is computed again later, except for pages that are still cached then."""
        self.counters.preemptions += 1
        self.running.remove(seq)
        seq.preemptions += 1
        seq.pinned = seq.preemptions >= self.limits.max_preemptions
        self._requeue(seq)

    def _requeue(self, seq: Sequence) -> None:
        for resource in self.resources:
            resource.release(seq)
        seq.state = State.WAITING
        seq.computed = seq.steady_until = seq.alarm = 0
        seq.steady_grant = None
        seq.plain = False
        if not seq.generated:
            seq.prompt_logprobs = None
        self.waiting.add(seq)

    def _admit_waiting(self, draft: Draft, now: float) -> None:
        """Start waiting sequences, looking a little past one that does not fit, but not past it for ever."""
        refused: list[Sequence] = []
        for seq in self.order.candidates(self.waiting.items, self.pages.hit_tokens, now):
            if self._admit(seq, draft):
                for other in refused:
                    other.passed += 1
                if not (self.rows.free and self.tokens.left):
                    return
            else:
                refused.append(seq)
                if len(refused) > self.limits.look_past or seq.passed >= self.limits.max_passed:
                    return

    def _admit(self, seq: Sequence, draft: Draft) -> bool:
        if seq.pinned and any(other.pinned for other in self.running):
            return False  # two of them could wait for each other's pages for ever
        self.pages.prepare(seq)
        tokens = self._offer(seq)
        if not tokens:
            seq.computed = 0
            seq.hit = None
            return False
        if seq.cached_tokens is None:
            self._count_hit(seq)
        self.waiting.remove(seq)
        self._take(seq, tokens, draft)
        seq.state = State.RUNNING
        self.running.add(seq)
        return True

    def _count_hit(self, seq: Sequence) -> None:
        seq.cached_tokens = seq.computed
        if self.limits.prefix_caching:
            self.counters.prefix_queries += seq.prompt_len
            self.counters.prefix_hits += seq.computed

    def _hand_over(self, draft: Draft) -> None:
        """The plan leaves: later plans may read the pages that it fills."""
        self.flights.append(draft)
        for seq in (*draft.chunks, *draft.sampling):
            if seq.computed >= seq.alarm and len(seq.tokens) >= seq.alarm:
                self._register(seq)

    def _register(self, seq: Sequence) -> None:
        self.pages.register(seq, self._step)
        seq.alarm = min(seq.max_len, self.pages.next_full(seq))
        seq.plain = False
        if seq.followers and self.pages.followers_may_start(seq):
            self._start_followers(seq)

    def _start_followers(self, seq: Sequence) -> None:
        for follower in seq.followers:
            follower.state = State.WAITING
            self.waiting.add(follower)
        seq.followers = []

    def _seniority(self, seq: Sequence) -> tuple[int, ...]:
        """Rank among the running: served first, preempted last. A pinned sequence stands above all."""
        return (not seq.pinned, *self.order.rank(seq))

    # ── Settling a result ───────────────────────────────────────────────────────────────────

    def commit(self, result: StepResult) -> list[Delta]:
        """Take in the result of the oldest plan in flight; a result of any other step is only counted.

        Returns the news, in order of the plan's grants. A sequence that has ended gives its row and pages back when
        its last plan in flight is in; results for it are dropped.
        """
        if not self.flights or result.step != self.flights[0].step:
            self.counters.ignored += 1
            return []
        flight = self.flights.popleft()
        self.counters.steps += 1
        self._step_tokens = flight.tokens
        deltas = self._fail(flight, result) if result.bad or result.errors else []
        for seq in flight.chunks:
            seq.in_flight -= 1
            self._settle_chunk(seq, result)
        samples = dict(zip(result.rows, result.tokens, strict=True))
        for seq in flight.sampling:
            seq.in_flight -= 1
            seq.expected -= 1
            if seq.state is not State.RUNNING:
                self.counters.discarded += 1
                self._leave(seq)
                continue
            token = samples[seq.row]
            seq.tokens.append(token)
            if seq.plain and token not in seq.stops and len(seq.tokens) < seq.alarm:
                deltas.append(Delta(seq.request.id, seq.index, [token]))
            else:
                deltas.append(self._news(seq, result))
        return deltas

    def _settle_chunk(self, seq: Sequence, result: StepResult) -> None:
        if seq.state is State.RUNNING:
            self._collect_prompt_logprobs(seq, result)
        else:
            self._leave(seq)

    def _collect_prompt_logprobs(self, seq: Sequence, result: StepResult) -> None:
        if seq.wants_prompt_logprobs and (entries := result.prompt_logprobs.get(seq.row)):
            seq.prompt_logprobs = (seq.prompt_logprobs or []) + entries

    def _news(self, seq: Sequence, result: StepResult) -> Delta:
        """All there is to say of a sample, and to do about it."""
        delta = Delta(seq.id, seq.index, seq.tokens[-1:])
        if seq.params.logprobs is not None and (logprobs := result.logprobs.get(seq.row)):
            delta.logprobs = [logprobs]
        if seq.generated == 1:
            self._first_news(seq, delta, result)
        # This sample read every page that was filled up to its plan, and it was finite.
        seq.hit = None
        while seq.unconfirmed and seq.unconfirmed[0][0] <= result.step:
            seq.unconfirmed.popleft()
        if end := ending(seq):
            delta.finish_reason, delta.stop_reason = end.finish_reason, end.stop_reason
            self.counters.finished += 1
            self._end(seq)
            return delta
        if seq.computed >= seq.alarm and len(seq.tokens) >= seq.alarm:
            self._register(seq)
        seq.plain = seq.params.logprobs is None and not seq.unconfirmed
        return delta

    def _first_news(self, seq: Sequence, delta: Delta, result: StepResult) -> None:
        delta.cached_tokens = seq.cached_tokens or 0
        self._collect_prompt_logprobs(seq, result)
        if seq.wants_prompt_logprobs:
            delta.prompt_logprobs, seq.prompt_logprobs = seq.prompt_logprobs or [], None
            seq.params = without_prompt_logprobs(seq.params)

    def _fail(self, flight: Draft, result: StepResult) -> list[Delta]:
        """End the sequences whose rows failed; what they computed must reach nobody."""
        endings = {row: Ending("error", error=text) for row, text in result.errors.items()}
        endings |= {row: Ending("error", error=NOT_FINITE) for row in result.bad}
        deltas = []
        for seq in (*flight.chunks, *flight.sampling):
            if seq.row in endings and seq.state is State.RUNNING:
                deltas.append(Delta(seq.id, seq.index, [], None, "error", error=endings[seq.row].error))
                self.counters.failed += 1
                self._withdraw(seq)
                self._end(seq)
        return deltas

    def _withdraw(self, seq: Sequence) -> None:
        """Take the pages of a failed sequence out of the index; who shares one that nothing confirmed starts again."""
        doubtful = self.pages.withdraw(seq)
        for other in tuple(self.running):
            if other is not seq and other.hit and self._uses(other, doubtful):
                self.counters.restarted += 1
                self._withdraw(other)
                if other.state is State.RUNNING:
                    self._depart(other, State.RETURNING)

    def _uses(self, seq: Sequence, doubtful: set[tuple[int, int]]) -> bool:
        assert seq.hit is not None
        return any((group, page) in doubtful for group, pages in enumerate(seq.hit.pages) for page in pages)

    # ── Leaving ─────────────────────────────────────────────────────────────────────────────

    def _end(self, seq: Sequence) -> None:
        """`seq` ends for good, whatever it is doing."""
        siblings = self.alive[seq.id]
        siblings.remove(seq)
        if not siblings:
            del self.alive[seq.id]
        if seq.state is State.FOLLOWING:
            leader = next(s for s in siblings if seq in s.followers)
            leader.followers.remove(seq)
            seq.state = State.GONE
            return
        self._start_followers(seq)
        self._depart(seq, State.LEAVING)

    def _depart(self, seq: Sequence, state: State) -> None:
        if seq.state is State.WAITING:
            self.waiting.remove(seq)
        elif seq.state is State.RUNNING:
            self.running.remove(seq)
        seq.state = state
        self.leaving.add(seq)
        self._leave(seq)

    def _leave(self, seq: Sequence) -> None:
        """Give everything back, unless a plan in flight still holds it."""
        if seq.in_flight:
            return
        self.leaving.discard(seq)
        if seq.state is State.RETURNING:
            self._requeue(seq)
            return
        for resource in self.resources:
            resource.release(seq)
        seq.state = State.GONE
