"""Prompts share a step as far as one is recorded; larger steps are launched kernel by kernel and pay off for many."""

from collections.abc import Callable, Iterable

from quire.scheduler.sequence import Sequence

PAYS_OFF = 2
"""Launching takes as long as computing about twice as many tokens as the largest recording has room for."""


class RecordedSteps:
    """No further prompt joins a step that would grow beyond the recordings, unless far more tokens wait.

    One after the other, the first prompts bring their first tokens sooner and the last one no later.

    Args:
        tokens: of prompts, in the largest recording.
        waiting: who has not begun.
        held: whether one of them cannot begin yet, for its grammar is not ready.
    """

    def __init__(self, tokens: int, waiting: Iterable[Sequence], held: Callable[[Sequence], bool]) -> None:
        self._tokens = tokens
        self._waiting = waiting
        self._held = held
        self.new_step()

    def new_step(self) -> None:
        """No prompts yet."""
        self._taken = 0
        self._crowded: bool | None = None

    def offer(self, seq: Sequence, tokens: int) -> int:
        """All of them, or none."""
        joins = tokens == 1 or not self._taken or self._taken + tokens <= self._tokens
        return tokens if joins or self._is_crowded() else 0

    def take(self, seq: Sequence, tokens: int) -> None:
        """Count tokens of prompts."""
        self._taken += tokens if tokens > 1 else 0

    def release(self, seq: Sequence) -> None:
        """Nothing is held between steps."""

    def _is_crowded(self) -> bool:
        if self._crowded is None:
            left = PAYS_OFF * self._tokens - self._taken
            for seq in self._waiting:
                left -= 0 if self._held(seq) else seq.pending
                if left < 0:
                    break
            self._crowded = left < 0
        return self._crowded
