"""`Planner`: who computes how many tokens in the next step.

First those that run, in order of seniority, then those that wait. Every sequence is asked for as many tokens as it is
behind; resources offer; nothing else decides. Called by `Scheduler.plan` only.
"""

from quire.messages.plan import Grant
from quire.scheduler.pending_plan import PendingPlan
from quire.scheduler.roster import Roster
from quire.scheduler.sequence import Sequence, State


class Planner:
    """Fills plans from a roster."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        # Not planned now, so that they can be preempted once plans in flight are in.
        self._yielding: list[Sequence] = []

    def fill(self, pending_plan: PendingPlan, now: float) -> None:
        """Grant what can be granted now. `now` in seconds, as in `Scheduler.plan`."""
        roster = self._roster
        for resource in roster.resources:
            resource.new_step()
        self._continue_running(pending_plan)
        if roster.waiting and roster.rows.free and roster.tokens.left:
            self._admit_waiting(pending_plan, now)

    def _continue_running(self, pending_plan: PendingPlan) -> None:
        budget = self._roster.tokens
        advance = pending_plan.advance
        for seq in tuple(self._roster.running):
            if seq.computed < seq.steady_until:
                if (seq.chain or not seq.expected) and budget.left and not seq.yielding:
                    budget.left -= 1
                    advance(seq)
            elif seq.state is State.RUNNING and not seq.yielding and seq.may_advance():
                try:
                    self._advance(seq, pending_plan)
                except Exception:
                    self._roster.fail(seq)
        for seq in self._yielding:
            seq.yielding = False
        self._yielding.clear()

    def _advance(self, seq: Sequence, pending_plan: PendingPlan) -> None:
        """Grant what all resources offer, making room where pages are missing."""
        self._roster.pages.trim(seq)
        while not (tokens := self._offer(seq)):
            if not self._make_room(seq):
                return
        self._take(seq, tokens, pending_plan)

    def _offer(self, seq: Sequence) -> int:
        tokens = seq.pending
        for resource in self._roster.resources:
            tokens = resource.offer(seq, tokens)
            if not tokens:
                return 0
        return tokens

    def _take(self, seq: Sequence, tokens: int, pending_plan: PendingPlan) -> None:
        for resource in self._roster.resources:
            resource.take(seq, tokens)
        if seq.state is State.WAITING:
            pending_plan.begin(seq)
        pending_plan.grant(seq, tokens)
        if seq.pending == 1 and not seq.pooled:
            # It advances token by token from here; the token at max_len - 1 is sampled and never computed.
            seq.steady_until = min(self._roster.pages.room(seq), seq.max_len - 1)
            if seq.steady_grant.row != seq.row:
                seq.steady_grant = Grant(seq.row, 1, True, [[] for _ in seq.tables])

    def _make_room(self, seq: Sequence) -> bool:
        """Win back pages from the sequence that ranks last. Returns whether it is worth asking again.

        While plans in flight hold that sequence it is not planned any further, so that it can be preempted once they
        are in; `seq` waits until then.
        """
        roster = self._roster
        if not roster.tokens.left or roster.pages.offer(seq, 1):
            return False  # something else is missing; preemption would not help
        victim = next((s for s in reversed(roster.running.items) if not s.pinned), None)
        if victim is None or roster.seniority(victim) < roster.seniority(seq):
            return False
        if victim.in_flight:
            victim.yielding = True
            self._yielding.append(victim)
            return False
        roster.preempt(victim)
        return victim is not seq

    def _admit_waiting(self, pending_plan: PendingPlan, now: float) -> None:
        """Start waiting sequences, looking a little past one that does not fit, but not past it for ever."""
        roster, limits = self._roster, self._roster.limits
        refused: list[Sequence] = []
        for seq in roster.order.candidates(roster.waiting.items, roster.pages.hit_tokens, now):
            if roster.grammars.holds(seq):
                continue  # nothing that others give back would help it, so it stands in nobody's way
            try:
                admitted = self._admit(seq, pending_plan)
            except Exception:
                roster.fail(seq, told=any(new.row == seq.row for new in pending_plan.new))
                continue
            if admitted:
                for other in refused:
                    other.times_skipped += 1
            else:
                refused.append(seq)
            full = not (roster.rows.free and roster.tokens.left)
            if full or len(refused) > limits.look_past or any(s.times_skipped >= limits.max_skipped for s in refused):
                return

    def _admit(self, seq: Sequence, pending_plan: PendingPlan) -> bool:
        roster = self._roster
        if seq.pinned and any(other.pinned for other in roster.running):
            return False  # two of them could wait for each other's pages for ever
        roster.pages.prepare(seq)
        tokens = self._offer(seq)
        if not tokens:
            seq.computed = 0
            seq.hit = None
            return False
        if seq.cached_tokens is None:
            self._count_hit(seq)
        self._take(seq, tokens, pending_plan)
        roster.start(seq)
        return True

    def _count_hit(self, seq: Sequence) -> None:
        seq.cached_tokens = seq.computed
        if self._roster.limits.prefix_caching:
            self._roster.counters.prefix_queries += seq.prompt_len
            self._roster.counters.prefix_hits += seq.computed
