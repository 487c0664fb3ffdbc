"""The protocol between a grammar library and the sampler: what is compiled, and what follows a text.

One library stands behind it (`quire/structured/llguidance.py`); to take another, write its file beside that one.
"""

from collections.abc import Sequence
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from quire.messages.structured import StructuredOutputsParams

Mask = NDArray[np.int32]
"""(rows, words) int32: bit t % 32 of word t // 32 says whether token t may come next."""


class Vocabulary(msgspec.Struct, frozen=True):
    """What a library must know of a model's tokens.

    Attributes:
        tokenizer: the file tokenizer.json.
        size: rows of the embedding.
        eos: tokens that end a text.
    """

    tokenizer: str
    size: int
    eos: tuple[int, ...]


class Matcher(Protocol):
    """A place in a grammar: the fold of the tokens taken so far."""

    @property
    def complete(self) -> bool:
        """Whether the text is a sentence that no token can continue."""
        ...

    @property
    def error(self) -> str | None:
        """Why nothing can follow, in one sentence; None while all is well."""
        ...

    def take(self, tokens: Sequence[int]) -> None:
        """Go on by these tokens; one that the grammar forbids leads into `error`. For several at once see `Backend`."""
        ...


class Grammar(Protocol):
    """A compiled grammar."""

    def start(self) -> Matcher:
        """A matcher before the first token, of its own state."""
        ...


class Backend(Protocol):
    """A library, with one vocabulary."""

    def compile(self, wanted: StructuredOutputsParams) -> Grammar:
        """Compile, from any thread. Raises RequestError with code invalid_schema."""
        ...

    def take(self, tokens: Sequence[tuple[Matcher, int]]) -> None:
        """Lead each matcher on by a token."""
        ...

    def fill(self, matchers: Sequence[tuple[Matcher, int]], mask: Mask) -> None:
        """Write the mask of each matcher into its row of `mask`. A matcher may be in `error` afterwards."""
        ...
