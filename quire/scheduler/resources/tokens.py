"""The token budget of a step."""

from quire.scheduler.sequence import Sequence


class Tokens:
    """At most `per_step` tokens in one plan."""

    def __init__(self, per_step: int) -> None:
        self.per_step = per_step
        self.left = per_step

    @property
    def used(self) -> int:
        """Tokens granted in this step."""
        return self.per_step - self.left

    def new_step(self) -> None:
        """The whole budget again."""
        self.left = self.per_step

    def offer(self, seq: Sequence, tokens: int) -> int:
        """What is left of the budget."""
        return min(tokens, self.left)

    def take(self, seq: Sequence, tokens: int) -> None:
        """Use up."""
        self.left -= tokens

    def release(self, seq: Sequence) -> None:
        """Nothing is held between steps."""
