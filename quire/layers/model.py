"""What the runner asks of a model."""

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor, nn

from quire.ops.step import StepInputs


class Model(Protocol):
    """A model that was built: an nn.Module with two ways in."""

    def __call__(self, step: StepInputs) -> Tensor:
        """Hidden states of all tokens of the step: (tokens, hidden)."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Rows of hidden states to logits of the whole vocabulary: (n, vocab)."""
        ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """All parameters."""
        ...
