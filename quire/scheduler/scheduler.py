"""`Scheduler`: asks resources, makes plans, applies results.

There is no prefill and no decode: a sequence has known tokens and computed tokens, and each step lets it catch up by as
many as all resources offer. Chunked prompts, prefix hits and preemption are that one rule. Pure: no clock, no tensor,
no I/O; the engine core calls it from one thread.
"""

import random
import secrets
from collections import deque
from collections.abc import Collection
from itertools import chain, count, islice

from quire.base.errors import RequestError
from quire.messages.plan import StepPlan, StepResult
from quire.messages.request import Request
from quire.messages.state import Layout
from quire.messages.wire import Delta, Stats
from quire.scheduler.intake import Entry, cost_of, make_sequences, max_len_of, seed_of
from quire.scheduler.invariants import check
from quire.scheduler.limits import Limits
from quire.scheduler.pending_plan import PendingPlan
from quire.scheduler.planner import Planner
from quire.scheduler.results import apply_result
from quire.scheduler.roster import Counters, Roster


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
        self.layout = layout
        self.flights: deque[PendingPlan] = deque()
        self.roster = Roster(limits, layout, secrets.token_bytes(32) if hash_key is None else hash_key)
        self._planner = Planner(self.roster)
        self._steps = 0
        self._step_tokens = 0
        self._streams = False  # whether the last plan sampled: then there are streams to wait for the next one
        self._arrivals = count()
        self._draw = random.Random(seed).getrandbits

    @property
    def has_work(self) -> bool:
        """Whether a sequence is alive or a plan is in flight."""
        return bool(self.roster.alive or self.flights)

    @property
    def has_grammars(self) -> bool:
        """Whether a sequence that runs keeps to a grammar: its steps end once their masks are there."""
        return bool(self.roster.grammars.bound)

    @property
    def open(self) -> bool:
        """Whether to wait with the next plan for whoever may come: nobody else waits, not even a grammar's mask."""
        return bool(self.roster.rows.free) and not self.roster.waiting and not self.has_grammars

    @property
    def counters(self) -> Counters:
        """What has happened since the start."""
        return self.roster.counters

    def add(self, request: Request, now: float) -> None:
        """Queue the n sequences of a request. `now` in seconds, from the same clock as for `plan`.

        Raises:
            RequestError: with code context_length_exceeded or kv_capacity, when it can never be served.
        """
        assert request.id not in self.roster.alive, f"request id {request.id!r} is in use"
        max_len = max_len_of(request, self.layout.max_model_len)
        if not self.roster.pages.can_ever_hold(max_len):
            raise RequestError(
                f"{max_len} tokens (prompt and max_tokens) do not fit the memory for pages, even alone; shorten the "
                f"prompt, lower max_tokens, or give the engine more memory for pages",
                param="max_tokens",
                code="kv_capacity",
            )
        seed = seed_of(request, self._draw)
        turn = self.roster.fair_share.take(request.owner, cost_of(request, max_len))
        entry = Entry(now, turn, self._arrivals)
        self.roster.enter(request.id, make_sequences(request, self.limits, max_len, seed, entry))

    def plan(self, now: float) -> StepPlan | None:
        """Who computes how many tokens next; None when there is nothing to do before a result or a request comes in."""
        pending_plan = PendingPlan(self._steps + 1)
        self.roster.tokens.streaming = self._streams
        self._planner.fill(pending_plan, now)
        if not pending_plan.grants:
            return None
        self._streams = bool(pending_plan.sampling)
        self._steps += 1
        pending_plan.tokens = self.roster.tokens.used
        self.flights.append(pending_plan)
        # Ranks run plans in order: from here on, later plans may read the pages that this one fills. Those that a
        # steady sequence fills are registered at commit, when its sample is known.
        for seq in pending_plan.caught_up:
            try:
                self.roster.register(seq, pending_plan.step)
            except Exception:
                self.roster.fail(seq)
        return pending_plan.plan(self.roster.rows.drain(), self.roster.pages.shared())

    def commit(self, result: StepResult, seconds: float | None = None) -> list[Delta]:
        """Take in the result of the oldest plan in flight; a result of any other is only counted. Returns the news.

        `seconds` is how long the step took, where that is known.
        """
        if not self.flights or result.step != self.flights[0].step:
            self.counters.ignored += 1
            return []
        flight = self.flights.popleft()
        self.counters.steps += 1
        self._step_tokens = flight.tokens
        if self.roster.step_times is not None and seconds is not None:
            self.roster.step_times.observe(flight.prompt_tokens, flight.prompt_pairs, seconds)
        deltas = apply_result(self.roster, flight, result, self._steps)
        return [*self.failures(), *deltas] if self.roster.failures else deltas

    def failures(self) -> list[Delta]:
        """News of sequences that have ended for a fault in looking at them; to be asked where no plan is committed."""
        failures, self.roster.failures = self.roster.failures, []
        return failures

    def abort(self, id: str) -> None:
        """End a request at any moment; nothing more is said about it. An unknown id is only counted."""
        sequences = self.roster.alive.get(id)
        if sequences is None:
            self.counters.ignored += 1
            return
        for seq in reversed(sequences[:]):  # the leader last, so that nobody starts in its place
            self.counters.aborted += 1
            self.roster.end(seq)

    def finish(self, id: str, index: int, tokens: int) -> bool:
        """The front end ended sequence `index` of a request after `tokens` generated tokens; it hears no more of it.

        Returns whether the sequence was alive; if not, its last delta has already left.
        """
        seq = next((s for s in self.roster.alive.get(id, ()) if s.index == index), None)
        if seq is None:
            self.counters.ignored += 1
            return False
        self.counters.finished += 1
        self.counters.discarded += max(0, seq.generated - tokens)
        self.roster.end(seq)
        return True

    def hold(self, grammar: str) -> None:
        """Sequences of this grammar wait until `ready` is told."""
        self.roster.grammars.pending.add(grammar)

    def ready(self, grammar: str) -> None:
        """The grammar is compiled on every rank that needs it."""
        self.roster.grammars.pending.discard(grammar)

    @property
    def used_grammars(self) -> Collection[str]:
        """Those of sequences that have not ended, as they are now."""
        return self.roster.grammars.users.keys()

    @property
    def leaving_grammars(self) -> Collection[str]:
        """Those of sequences that no longer run, but that a plan in flight may yet begin."""
        return {seq.grammar for seq in self.roster.leaving if seq.grammar is not None}

    def take_given_up_grammars(self) -> set[str]:
        """Those whose last user has ended since this was last asked, unless another has come."""
        return self.roster.grammars.take_given_up()

    def users(self, grammar: str) -> list[str]:
        """Requests of this grammar that have not ended."""
        return sorted({seq.id for seq in self.roster.grammars.users.get(grammar, ())})

    def next_grammars(self, count: int) -> Collection[str]:
        """Those of the first `count` sequences: of all that run and then of those that wait, in their order."""
        first = islice(chain(self.roster.running, self.roster.waiting), count)
        return dict.fromkeys(seq.grammar for seq in first if seq.grammar is not None)

    def reset_prefix_cache(self) -> None:
        """Forget every cached page that no sequence uses."""
        self.roster.pages.reset()

    def stats(self) -> Stats:
        """Gauges and counters for /metrics."""
        counters, running = self.counters, len(self.roster.running)
        return Stats(
            running=running,
            waiting=counters.alive - running,
            kv_usage=self.roster.pages.usage(),
            preemptions=counters.preemptions,
            prefix_queries=counters.prefix_queries,
            prefix_hits=counters.prefix_hits,
            steps=counters.steps,
            step_tokens=self._step_tokens,
        )

    def check(self) -> None:
        """Assert every invariant; for tests after each step, and when the engine is idle."""
        check(self.roster, list(self.flights))
