"""What the runner asks of a model."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor, nn

from quire.layers.scores import Projections
from quire.ops.step import StepInputs


class Reader(Protocol):
    """A model that was built: an nn.Module that reads."""

    def __call__(self, step: StepInputs) -> Tensor:
        """Hidden states of all tokens of the step, or of the last ones where it says so: (n, hidden)."""
        ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """All parameters."""
        ...


class Model(Reader, Protocol):
    """One that generates."""

    def abridged(self) -> AbstractContextManager[None]:
        """In this context a pass takes every kernel that it takes otherwise, through as few layers as do.

        What it computes means nothing.
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Rows of hidden states to logits of the whole vocabulary: (n, vocab)."""
        ...


class Projector(Reader, Protocol):
    """One with products behind it that vectors go through."""

    projections: Projections


class Scorer(Reader, Protocol):
    """One with a head that scores labels."""

    def scores(self, hidden: Tensor) -> Tensor:
        """Pooled hidden states, or those of single tokens, to raw scores: (n, hidden) to (n, labels)."""
        ...
