"""`EngineCore`: scheduler and executor in one loop, plan, run, commit.

One loop serves plain (depth 1) and overlapped (depth 2) execution. `LLM` turns it in its own thread;
`engine/process.py` turns it in a process of its own and speaks to front ends. `engine/begin.py` makes it. It knows
tokens, never text.
"""

import time
from collections import deque
from collections.abc import Callable

from quire.engine.grammars import GrammarService
from quire.engine.launch_delay import LaunchDelay
from quire.executors.base import Executor, Pending
from quire.messages.plan import StepPlan
from quire.messages.request import Request
from quire.messages.structured import grammar_key
from quire.messages.wire import Delta, EngineFacts
from quire.scheduler.scheduler import Scheduler


class EngineCore:
    """One engine: its scheduler, its ranks and the plans in flight.

    Args:
        executor: ranks that are ready for steps.
        scheduler: of the pages that these ranks have.
        grammars: of requests that ask for a form.
        facts: what front ends are told.
        depth: plans in flight at once.
        clock: seconds; never goes back.

    Attributes:
        patience_s: how long a step may take before the engine counts as hung; 0 has no opinion.
    """

    def __init__(
        self,
        executor: Executor,
        scheduler: Scheduler,
        grammars: GrammarService,
        facts: EngineFacts,
        depth: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.executor = executor
        self.scheduler = scheduler
        self.grammars = grammars
        self.facts = facts
        self.depth = depth
        self.patience_s = 0.0
        self.in_flight: deque[tuple[StepPlan, Pending, float]] = deque()
        self._clock = clock
        self._ended_at = 0.0
        self._launch_delay = LaunchDelay()

    @property
    def busy(self) -> bool:
        """Whether a sequence waits or runs, or a plan is in flight."""
        return bool(self.in_flight) or self.scheduler.has_work

    def turn(self) -> list[Delta] | None:
        """One turn of the loop: plan and launch, then commit the oldest plan. None when nothing could be done."""
        self.grammars.arrange()
        planned = self._clock()
        plan = self.scheduler.plan(planned) if len(self.in_flight) < self.depth else None
        if plan is not None:
            self.in_flight.append((plan, self.executor.step(plan), self._clock()))
        if not self.in_flight:
            return self.scheduler.failures() or None
        if plan is not None and len(self.in_flight) < self.depth:
            return []
        began, asked = self._began, self._clock()
        pending = self.in_flight.popleft()[1]
        pending.wait()
        # What the host takes to read the result is no part of the step: by then the device is at the next one.
        self._ended_at = self._clock()
        result = pending.result()
        seconds = self._ended_at - began
        if plan is not None and not self.scheduler.has_grammars:
            self._launch_delay.observe(
                self.scheduler.flights[0].size, seconds - (asked - planned), self._ended_at - asked
            )
        return self.scheduler.commit(result, seconds)

    @property
    def pause_ms(self) -> int:
        """Whole milliseconds for which the next plan can wait for requests, as the device computes until then."""
        if len(self.in_flight) != 1 or self.depth == 1 or not self.scheduler.open:
            return 0
        until = self._began + self._launch_delay.of(self.scheduler.flights[0].size)
        return max(0, int(1000 * (until - self._clock())))

    @property
    def _began(self) -> float:
        """When the oldest plan in flight did: when the one before had ended, or when it was launched."""
        return max(self.in_flight[0][2], self._ended_at)

    def add(self, request: Request) -> None:
        """Take a request. Raises RequestError if it can never fit, or if its grammar is known to be bad."""
        wanted = request.params.structured_outputs
        key = grammar_key(wanted)
        self.grammars.refuse_bad(key)
        self.scheduler.add(request, self._clock())
        self.grammars.want(key, wanted)

    def abort(self, ids: list[str]) -> None:
        """End requests; unknown ids are ignored."""
        for request_id in ids:
            self.scheduler.abort(request_id)
        self.grammars.arrange()

    def close(self) -> None:
        """Wait for plans in flight, end the ranks, give all memory back."""
        try:
            while self.in_flight:
                self.in_flight.popleft()[1].result()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """End the ranks without waiting for plans in flight, and give all memory back."""
        self.in_flight.clear()
        self.grammars.close()
        self.executor.stop()
