"""Stop strings, found in text that comes in pieces exactly as if it had come at once.

The match that starts earliest wins; among those the one that ends first. Text is let go only when no stop string can
begin in it any more, so at most max(len(stop)) - 1 characters wait (more only while a match that starts earlier is
still possible). One pass, whatever the number of strings: the automaton of Aho and Corasick, "Efficient string
matching" (1975). Called by `engine.completion`; knows no tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class Match:
    """A stop string in the text: characters `start` to `end`, counted from the start of the text."""

    start: int
    end: int
    stop: str


@dataclass(slots=True)
class _Automaton:
    """States are prefixes of the stop strings; state 0 is the empty one.

    Attributes:
        next: per state, the longer prefix by character.
        fallback: per state, the longest proper suffix of it that is a state.
        depth: per state, its length.
        found: per state, the longest stop string that ends there, or "".
    """

    next: list[dict[str, int]] = field(default_factory=lambda: [{}])
    fallback: list[int] = field(default_factory=lambda: [0])
    depth: list[int] = field(default_factory=lambda: [0])
    found: list[str] = field(default_factory=lambda: [""])

    def add(self, stop: str) -> None:
        state = 0
        for char in stop:
            if char not in self.next[state]:
                self.next[state][char] = len(self.next)
                self.next.append({})
                self.fallback.append(0)
                self.depth.append(self.depth[state] + 1)
                self.found.append("")
            state = self.next[state][char]
        self.found[state] = stop

    def link(self) -> None:
        """Fill `fallback` and the `found` that comes through it, shorter states first."""
        layer = list(self.next[0].values())
        while layer:
            for state in layer:
                self.found[state] = self.found[state] or self.found[self.fallback[state]]
                for char, child in self.next[state].items():
                    self.fallback[child] = self.step(self.fallback[state], char)
            layer = [child for state in layer for child in self.next[state].values()]

    def step(self, state: int, char: str) -> int:
        """The longest suffix of state + char that is a state."""
        while state and char not in self.next[state]:
            state = self.fallback[state]
        return self.next[state].get(char, 0)


@lru_cache(maxsize=256)
def _automaton(stops: tuple[str, ...]) -> _Automaton:
    automaton = _Automaton()
    for stop in stops:
        automaton.add(stop)
    automaton.link()
    return automaton


class StopFinder:
    """Lets text through up to the first stop string.

    Args:
        stops: strings that are not empty.
        include: whether the stop string itself is let through.

    Attributes:
        match: the stop string, once it is decided; nothing is let through after it.
        released: characters let through so far.
    """

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        self._automaton = _automaton(tuple(stops))
        self._include = include
        self._state = 0
        self._position = 0
        self._held = ""
        self._candidate: Match | None = None
        self.match: Match | None = None
        self.released = 0

    def push(self, text: str, *, may_stop: bool = True) -> str:
        """Take more text; what is certain to stay.

        Args:
            text: what follows.
            may_stop: False passes over stop strings that end in this piece (`min_tokens`).
        """
        if self.match is not None:
            return ""
        self._held += text
        for char in text:
            self._advance(char, may_stop)
            if self._candidate is not None and self._first_open() >= self._candidate.start:
                return self._decide(self._candidate)
        return self._release(min(self._first_open(), self._candidate.start if self._candidate else self._position))

    def flush(self) -> str:
        """The end of the text: what was held, up to a stop string in it."""
        if self.match is not None:
            return ""
        return self._decide(self._candidate) if self._candidate else self._release(self._position)

    def _first_open(self) -> int:
        """Where the longest text begins that could still become a stop string."""
        return self._position - self._automaton.depth[self._state]

    def _advance(self, char: str, may_stop: bool) -> None:
        self._state = self._automaton.step(self._state, char)
        self._position += 1
        stop = self._automaton.found[self._state]
        start = self._position - len(stop)
        if stop and may_stop and (self._candidate is None or start < self._candidate.start):
            self._candidate = Match(start, self._position, stop)

    def _decide(self, match: Match) -> str:
        self.match = match
        return self._release(match.end if self._include else match.start)

    def _release(self, end: int) -> str:
        count = end - self.released
        text, self._held = self._held[:count], self._held[count:]
        self.released = end
        return text
