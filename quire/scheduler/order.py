"""Who is served first: the policies of the waiting queue.

A policy gives a key that ranks sequences for good (the queue is sorted by it, and who ranks last is preempted first),
and may look through the queue in another order when it admits.
"""

from collections.abc import Callable, Iterable
from typing import Protocol

from quire.scheduler.sequence import Sequence

LOOK_AHEAD = 128
"""Longest prefix first compares so many sequences; further ones wait in order of arrival."""

OVERDUE_S = 5.0
"""A sequence that has waited so long is served before any longer prefix hit."""


class Order(Protocol):
    """A scheduling policy."""

    def rank(self, seq: Sequence) -> tuple[int, ...]:
        """Smaller is served first. Unique, and the same for the whole life of the sequence."""

    def candidates(self, waiting: list[Sequence], hit: Callable[[Sequence], int], now: float) -> Iterable[Sequence]:
        """The waiting sequences in the order in which to try them. `hit` counts the tokens that the cache holds."""


class FirstCome:
    """In order of arrival, where several owners ask in turns (see `FairShare`)."""

    def rank(self, seq: Sequence) -> tuple[int, ...]:
        """By turn, then arrival."""
        return (seq.turn, seq.arrival)

    def candidates(self, waiting: list[Sequence], hit: Callable[[Sequence], int], now: float) -> Iterable[Sequence]:
        """As they stand."""
        return tuple(waiting)


class Priority(FirstCome):
    """The lowest `priority` number first, then as they came."""

    def rank(self, seq: Sequence) -> tuple[int, ...]:
        """By priority, turn, arrival."""
        return (seq.request.priority, seq.turn, seq.arrival)


class LongestPrefix(FirstCome):
    """Longest prefix hit first, so that cached pages are used before they are lost; nobody waits for ever."""

    def candidates(self, waiting: list[Sequence], hit: Callable[[Sequence], int], now: float) -> Iterable[Sequence]:
        """By hit among the first `LOOK_AHEAD`, those that are overdue before all."""

        def key(seq: Sequence) -> tuple[bool, int, int, int]:
            overdue = now - seq.arrived >= OVERDUE_S
            return (not overdue, 0 if overdue else -hit(seq), seq.turn, seq.arrival)

        return [*sorted(waiting[:LOOK_AHEAD], key=key), *waiting[LOOK_AHEAD:]]


ORDERS: dict[str, type[Order]] = {"fcfs": FirstCome, "priority": Priority, "lpm": LongestPrefix}
