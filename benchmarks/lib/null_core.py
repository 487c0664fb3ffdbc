"""An engine core without a model: real scheduler, real wire, steps that last a given time and give made-up tokens.

    python benchmarks/lib/null_core.py STEP_MS    (started by benchmarks/front.py, never by hand)

What is left of a server's cost is its front end's.
"""

import sys
import time

from quire.config.spec import RunSpec
from quire.engine.process import main
from quire.executors.base import Progress
from quire.messages.plan import StepPlan, StepResult
from quire.messages.state import Capacity, Layout, StateSpec
from quire.messages.structured import StructuredOutputsParams
from quire.structured.matcher import Vocabulary

STEP_S = float(sys.argv[1]) / 1000
FIRST, KINDS = 300, 1000
"""Tokens that come are these, one after the other."""


class NullStep:
    """A step that ends at its time."""

    def __init__(self, plan: StepPlan, due: float) -> None:
        self._plan = plan
        self._due = due

    def wait(self) -> None:
        """Wait until the step is over."""
        time.sleep(max(0.0, self._due - time.perf_counter()))

    def result(self) -> StepResult:
        """What it brought."""
        rows = [grant.row for grant in self._plan.grants if grant.samples]
        return StepResult(self._plan.step, rows, [FIRST + (self._plan.step + row) % KINDS for row in rows])


class NullExecutor:
    """Ranks that do nothing but take their time."""

    def __init__(self, spec: RunSpec) -> None:
        self._free_at = 0.0

    def load(self, progress: Progress) -> dict[str, str]:
        """Nothing to load."""
        return {}

    def measure(self) -> Capacity:
        """Pages cost next to nothing."""
        return Capacity(1 << 30, [StateSpec(16)])

    def allocate(self, layout: Layout) -> None:
        """Nothing to allocate."""

    def step(self, plan: StepPlan) -> NullStep:
        """One step after the other, as a device does."""
        self._free_at = max(self._free_at, time.perf_counter()) + STEP_S
        return NullStep(plan, self._free_at)

    def prepare(self, wanted: StructuredOutputsParams | None, vocabulary: Vocabulary, unused: list[str]) -> None:
        """Any grammar is fine."""

    def stop(self) -> None:
        """Nothing to stop."""


if __name__ == "__main__":
    sys.exit(main(NullExecutor))
