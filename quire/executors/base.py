"""What the engine core asks of an executor: run a plan on all ranks, wherever they are."""

from collections.abc import Callable
from typing import Protocol

from quire.messages.plan import StepPlan, StepResult
from quire.messages.state import Capacity, Layout
from quire.messages.structured import StructuredOutputsParams
from quire.structured.matcher import Vocabulary

Progress = Callable[[int, int], None]
"""Called with the bytes read so far and in all, while weights load."""

PATIENCE = 3.0
"""A step may take so many times what the largest one took when it was measured."""


class Pending(Protocol):
    """A step under way."""

    def wait(self) -> None:
        """Wait until it is computed; to read what it brought takes the host further time."""
        ...

    def result(self) -> StepResult:
        """Wait for it. Raises EngineDeadError if a rank has ended."""
        ...


class Executor(Protocol):
    """Ranks, as one."""

    def load(self, progress: Progress) -> dict[str, str]:
        """Load the model on every rank; which provider serves each op.

        Raises CheckpointError, ConfigError, EngineDeadError.
        """
        ...

    def measure(self) -> Capacity:
        """What the rank with the least memory can give to pages."""
        ...

    def allocate(self, layout: Layout) -> None:
        """Take pages on every rank."""
        ...

    def step(self, plan: StepPlan) -> Pending:
        """Hand a plan to every rank."""
        ...

    def prepare(self, wanted: StructuredOutputsParams | None, vocabulary: Vocabulary, unused: list[str]) -> None:
        """Compile a grammar where tokens are sampled, and wait for it. From a thread of its own, beside steps.

        Grammars with the keys `unused` are dropped before; without one that is wanted, that is all.

        Raises RequestError.
        """
        ...

    def stop(self) -> None:
        """End the ranks and give everything back. May be called twice."""
        ...
