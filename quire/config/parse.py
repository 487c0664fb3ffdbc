"""Text to values: what a field accepts is read from its annotation, and errors say where the text came from.

The same rules serve flags, environment, files and keywords. Knows nothing of ranges (`check`) or of where values come
from (`sources`); called by both, and by the command line for the look of its flags.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import Field, dataclass
from difflib import get_close_matches
from os import PathLike
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from quire.base.errors import ConfigError

Value = str | int | float | bool | dict[str, Any] | None

# As in vLLM: small letters count in thousands, capital ones in 1024s.
MULTIPLIERS: dict[str, int] = {"": 1} | {
    letter: base**power
    for letters, base in (("kmgt", 1000), ("KMGT", 1024))
    for power, letter in enumerate(letters, start=1)
}
WHOLE = re.compile(r"(-?)(\d{1,18})(?:\.(\d{1,9}))?([kmgtKMGT]?)", re.ASCII)
TRUTH = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)
UNSET = ("auto", "none", "null")


@dataclass(frozen=True, slots=True)
class Kind:
    """What a field takes: a base type, the words of a Literal (base str), and whether it may stay unset."""

    base: type
    choices: tuple[str, ...]
    optional: bool

    @property
    def accepts(self) -> str:
        """For people: the second half of "X is not ..."."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        words = {
            bool: "true or false",
            int: "a whole number such as 4096, 4k (4000) or 4K (4096)",
            float: "a number such as 0.9",
            str: "a text",
            dict: 'a JSON object such as {"rope_theta": 1000000}',
        }[self.base]
        return f"{words}, or auto" if self.optional and self.base not in (str, dict) else words


def kind_of(field: "Field[Any]") -> Kind:
    """What `field` takes, by its annotation: str, int, float, bool, dict or Literal of texts, with or without None."""
    annotation = field.type
    members = get_args(annotation)
    optional = NoneType in members
    if optional:
        annotation = next(m for m in members if m is not NoneType)
    if get_origin(annotation) is Literal:
        return Kind(str, get_args(annotation), optional)
    annotation = get_origin(annotation) or annotation
    if not isinstance(annotation, type):
        raise TypeError(f"{field.name}: a setting cannot have the type {annotation}")
    return Kind(annotation, (), optional)


def convert(kind: Kind, value: object, source: str) -> Value:
    """`value` as the type of `kind`.

    Args:
        value: text from a flag or the environment, or what a YAML, TOML or Python value already is.
        source: names the place in errors: "flag --port", "environment QUIRE_SERVER__PORT".

    Raises ConfigError that names the place and what is accepted.
    """
    try:
        if isinstance(value, str):
            return _from_text(kind, value.strip())
        return _from_typed(kind, value)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None


def _from_text(kind: Kind, text: str) -> Value:
    if kind.base is str and not kind.choices:
        return text
    if kind.optional and text.lower() in UNSET:
        return None
    if kind.choices:
        return _choice(kind, text)
    return _READERS[kind.base](kind, text)


def _from_typed(kind: Kind, value: object) -> Value:
    if value is None and kind.optional:
        return None
    if isinstance(value, bool):
        if kind.base is bool:
            return value
    elif isinstance(value, int) and kind.base in (int, float):
        return value if kind.base is int else float(value)
    elif isinstance(value, float) and kind.base is float:
        if math.isfinite(value):
            return value
    elif isinstance(value, dict) and kind.base is dict:
        return value
    elif isinstance(value, PathLike) and kind.base is str and not kind.choices:
        return str(value)
    remedy = "; put it in quotes" if kind.base is str and value is not None else ""
    raise ValueError(f"{value!r} is not {kind.accepts}{remedy}")


def _choice(kind: Kind, text: str) -> str:
    if text in kind.choices:
        return text
    close = get_close_matches(text, kind.choices, n=1)
    remedy = f"; did you mean {close[0]}?" if close else ""
    raise ValueError(f"{text!r} is not {kind.accepts}{remedy}")


def _whole(kind: Kind, text: str) -> int:
    match = WHOLE.fullmatch(text)
    if match:
        sign, digits, fraction, suffix = match.groups(default="")
        # Exact: 1.1k is 1100, which a float product would miss for some numbers.
        number: int
        number, rest = divmod(int(digits + fraction) * MULTIPLIERS[suffix], 10 ** len(fraction))
        if not rest:
            return -number if sign else number
    raise ValueError(f"{text!r} is not {kind.accepts}")


def _number(kind: Kind, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{text!r} is not {kind.accepts}")
    return number


def _truth(kind: Kind, text: str) -> bool:
    if text.lower() not in TRUTH:
        raise ValueError(f"{text!r} is not {kind.accepts}")
    return TRUTH[text.lower()]


def _object(kind: Kind, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{text!r} is not {kind.accepts}")
    return value


_READERS: dict[type, Callable[[Kind, str], Value]] = {int: _whole, float: _number, bool: _truth, dict: _object}
