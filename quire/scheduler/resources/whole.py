"""Whole sequences: what a model that looks both ways needs in one step."""

from quire.scheduler.sequence import Sequence


class Whole:
    """Grants all that a sequence wants, or nothing. Asked last."""

    def new_step(self) -> None:
        """Nothing is counted by steps."""

    def offer(self, seq: Sequence, tokens: int) -> int:
        """All of it, unless another resource had less."""
        return tokens if tokens == seq.pending else 0

    def take(self, seq: Sequence, tokens: int) -> None:
        """Nothing is used up."""

    def release(self, seq: Sequence) -> None:
        """Nothing is held."""
