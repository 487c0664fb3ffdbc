"""The arithmetic of the fake model: state and next token are hashes of everything that is read back.

Simple modular arithmetic. The state of a token depends on the token, its position and the states of all past tokens
that the retention rules let it see, in order; so a wrong page, offset, row, position or order anywhere changes what
follows.
"""

from collections.abc import Iterable
from typing import NamedTuple

PRIME = (1 << 61) - 1


class Poison(NamedTuple):
    """A state that is not finite, and whose step caused it; whoever reads it is not finite either."""

    id: str
    index: int
    step: int


State = int | Poison


def state_of(token: int, position: int, past: Iterable[State]) -> State:
    """State of a token at a position from the states that it reads, in order."""
    value = (token + 1) * 1_000_003 + position * 7_368_787
    for state in past:
        if isinstance(state, Poison):
            return state
        value = (value * 31 + state) % PRIME
    return value * 2_654_435_761 % PRIME


def next_token(state: int, seed: int, vocab: int, banned: frozenset[int]) -> int:
    """The token that follows a state under a seed, stepping past banned ones."""
    token = (state ^ seed) % PRIME * 48_271 % PRIME % vocab
    while token in banned:
        token = (token + 1) % vocab
    return token


def logprob(state: int, token: int) -> float:
    """A number that stands for the log-probability of `token` after `state`."""
    # In float32, as it travels, it is the same number.
    return -float((state * 69_621 + token) % 10_007) / 128
