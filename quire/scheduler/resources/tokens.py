"""The token budget of a step: so many at most, and while sequences stream no more than their latency allows."""

from quire.scheduler.sequence import Sequence
from quire.scheduler.step_time import StepTimeModel


class Tokens:
    """At most `per_step` tokens in one plan.

    Args:
        per_step: the number.
        step_times: what a step may take while sequences stream; None for as long as it takes.

    Attributes:
        left: of the budget.
        streaming: whether sequences generate beside the prompts of this step; the planner knows.
    """

    def __init__(self, per_step: int, step_times: StepTimeModel | None = None) -> None:
        self.per_step = per_step
        self.left = per_step
        self.streaming = False
        self._step_times = step_times
        self._room_s = 0.0

    @property
    def used(self) -> int:
        """Tokens granted in this step."""
        return self.per_step - self.left

    def new_step(self) -> None:
        """The whole budget again."""
        self.left = self.per_step
        if self._step_times is not None:
            self._room_s = self._step_times.room_s()

    def offer(self, seq: Sequence, tokens: int) -> int:
        """What is left of the budget."""
        most = min(tokens, self.left)
        if self._step_times is None or not self.streaming or tokens == 1:
            return most
        if self._room_s < 0:
            return 0  # another prompt goes on in this step
        return min(most, self._step_times.tokens(seq.computed, self._room_s))

    def take(self, seq: Sequence, tokens: int) -> None:
        """Use up."""
        self.left -= tokens
        if self._step_times is not None and tokens > 1:
            self._room_s -= self._step_times.cost_s(tokens, seq.computed) + 1e-12

    def release(self, seq: Sequence) -> None:
        """Nothing is held between steps."""
