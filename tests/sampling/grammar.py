"""A grammar without a library: what may come next hangs on all tokens before."""

import numpy as np

from quire.messages.structured import StructuredOutputsParams
from quire.structured.store import GrammarStore

LONGEST = 7
"""Tokens after which nothing may follow any more."""

WANTED = StructuredOutputsParams(regex="any")


class Fold:
    """A matcher: one token in three is forbidden, another third after each token."""

    complete = False

    def __init__(self) -> None:
        self.taken: list[int] = []

    @property
    def error(self) -> str | None:
        return "it is too long" if len(self.taken) > LONGEST else None

    def take(self, tokens) -> None:
        self.taken += tokens

    def mask(self, words: int) -> np.ndarray:
        bits = np.ones(32 * words, dtype=np.uint8)
        bits[sum(self.taken) % 3 :: 3] = 0
        return np.packbits(bits, bitorder="little").view(np.int32)


class Folds:
    """The library behind them."""

    def take(self, pairs) -> None:
        for matcher, token in pairs:
            matcher.take([token])

    def fill(self, pairs, mask) -> None:
        for matcher, row in pairs:
            mask[row] = matcher.mask(mask.shape[1])


class FoldStore(GrammarStore):
    """Has this grammar alone."""

    backend = Folds()

    def start(self, wanted: StructuredOutputsParams) -> Fold:
        return Fold()
