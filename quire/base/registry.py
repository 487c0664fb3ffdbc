"""Names that stand for objects imported on first use.

A registry maps a name to `module:attribute`. Nothing is imported until the name is asked for, so a folder may list
everything it offers without paying for what is not used.
"""

import importlib
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from quire.base.errors import ConfigError


def load(path: str) -> Any:
    """Import `module:attribute` and return the attribute."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


class Registry:
    """What a kind of thing offers by name.

    Args:
        kind: what the names stand for, used in the error for an unknown name ("scheduling policy").
        entries: name to `module:attribute`.
    """

    def __init__(self, kind: str, entries: Mapping[str, str]) -> None:
        self.kind = kind
        self._entries = dict(entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def get(self, name: str) -> Any:
        """The object called `name`. Raises ConfigError with the nearest names if there is none."""
        if name not in self._entries:
            raise ConfigError(f"unknown {self.kind} {name!r}; {did_you_mean(name, self._entries)}")
        return load(self._entries[name])


def did_you_mean(name: str, known: Collection[str], otherwise: str = "") -> str:
    """A remedy for a mistyped name: the closest known names; where none is close `otherwise`, or all of them."""
    close = get_close_matches(name, known, n=3)
    return f"did you mean {' or '.join(close)}?" if close else otherwise or f"known: {', '.join(sorted(known))}"


def lazy_attributes(module: str, names: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` for a module whose public names are imported on first use."""

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        value = load(names[name])
        setattr(sys.modules[module], name, value)
        return value

    return get, lambda: sorted([*names, *vars(sys.modules[module])])
