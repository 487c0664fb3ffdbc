"""Fault points by name: code that a scenario makes fail there the k-th time that it comes by."""

from collections.abc import Callable
from typing import Any


class Died(BaseException):
    """The process is gone, in the middle of whatever it did: no handler of its own sees that."""


class Hung(BaseException):
    """The process does nothing any more."""


class BrokeError(Exception):
    """Something has gone wrong that nobody has thought of."""


class Points:
    """What is armed.

    Attributes:
        broken: per point how often it has raised.
    """

    def __init__(self) -> None:
        self._armed: dict[str, tuple[int, type[BaseException]]] = {}
        self.broken: dict[str, int] = {}

    def arm(self, point: str, which: int, error: type[BaseException]) -> None:
        """Let `point` fail when it is passed for the `which`-th time from now on, counted from 0."""
        self._armed[point] = which, error

    def at(self, point: str) -> None:
        """Code comes by. Raises what was asked for, once."""
        if point not in self._armed:
            return
        which, error = self._armed.pop(point)
        if which == 0:
            self.broken[point] = self.broken.get(point, 0) + 1
            raise error(point)
        self._armed[point] = which - 1, error

    def before(self, point: str, owner: Any, name: str) -> None:
        """Pass `point` before each call of the method `name` of `owner`."""
        method: Callable[..., Any] = getattr(owner, name)

        def passed(*args: Any, **named: Any) -> Any:
            self.at(point)
            return method(*args, **named)

        setattr(owner, name, passed)
