"""Strict JSON: bytes become an object or a refusal, by rules stricter than Python's `json`.

Refused: anything but UTF-8, duplicate keys, NaN and infinities, lone surrogates, more than 64 levels, more values than
anybody needs. It takes time linear in the length, whatever comes. Called for short bodies where they arrive and for
long ones in a worker (`handler.py`), so it knows no HTTP.
"""

import json
import math
import re
from collections.abc import Callable

from quire.base.clip import clip
from quire.base.errors import RequestError

MAX_DEPTH = 64
PIECE_BYTES = 64 << 10
MAX_VALUES = 1 << 20
"""A parser holds everybody up while it makes a million Python objects; longer texts cost next to nothing."""

Json = dict[str, object]

_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_HALF = re.compile("[\ud800-\udfff]")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_object(raw: bytes) -> Json:
    """Strict JSON that must be an object. Raises RequestError."""
    if not raw.strip():
        raise _bad("The body is empty; it must be a JSON object.", "empty_body")
    _check_depth(raw)
    if raw.count(b",") > MAX_VALUES and _outside_strings(raw).count(b",") > MAX_VALUES:
        raise _bad(f"The body holds more than {MAX_VALUES} values.", "too_many_values")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _bad(f"The body is not UTF-8 (byte {error.start}).", "invalid_utf8") from None
    value = _decode(text)
    if not isinstance(value, dict):
        raise _bad("The body must be a JSON object.", "invalid_json")
    if _SURROGATE.search(text):
        _check_surrogates(value)
    return value


def _bad(message: str, code: str, param: str | None = None) -> RequestError:
    return RequestError(message, param, code)


def _check_depth(raw: bytes) -> None:
    """Refuse deep nesting before the parser recurses.

    Each round takes the innermost pairs away, in C; what is left after MAX_DEPTH rounds was deeper or never closed.
    """
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return
    brackets = _outside_strings(raw).translate(_ONE_KIND, _NO_BRACKETS)
    for _ in range(MAX_DEPTH):
        before, brackets = brackets, brackets.replace(b"[]", b"")
        if len(before) == len(brackets):
            break
    if b"[" in brackets:
        raise _bad(f"The body is nested more than {MAX_DEPTH} levels deep, or not closed.", "json_too_deep")


def _outside_strings(raw: bytes) -> bytes:
    """`raw` without its strings, closed or not; piece by piece, as others wait while a piece is worked on."""
    kept: list[bytes] = []
    start = inside = 0
    while start < len(raw):
        end = start + PIECE_BYTES
        # An escape stays whole: a piece never ends with a backslash.
        while raw[end - 1 : end] == b"\\":
            end += 1
        parts = raw[start:end].replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        kept.append(b"".join(parts[inside::2]))
        inside ^= (len(parts) - 1) & 1
        start = end
    return b"".join(kept)


class _NotFiniteError(Exception):
    """A number beyond the range of float64."""


def _unique(pairs: list[tuple[str, object]]) -> Json:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _bad(f"The key {clip(twice)!r} occurs twice in one object.", "duplicate_key", clip(twice))
    return found


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise _NotFiniteError
    return number


def _constant(name: str) -> float:
    raise _bad(f"{name} is not JSON; send a number or null.", "invalid_json")


_STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_constant)


def _decode(text: str) -> object:
    try:
        value: object = _STRICT.decode(text)
    except _NotFiniteError:
        path = _path_of_infinity(text)
        raise _bad(f"{path or 'The body'}: this number is too large.", "invalid_value", path) from None
    except json.JSONDecodeError as error:
        raise _bad(f"The body is not valid JSON: {error.msg} at character {error.pos}.", "invalid_json") from None
    except ValueError:
        # The interpreter's limit on digits of an integer, which keeps parsing linear.
        raise _bad("The body holds a number of too many digits.", "invalid_json") from None
    return value


def _path_of_infinity(text: str) -> str | None:
    """Where a number stands that is too large; None if its key occurs again, with another value.

    What follows it was not looked at yet: it may be no JSON.
    """
    try:
        value = json.loads(text)
    except ValueError:
        raise _bad("The body is not valid JSON, and holds a number that is too large.", "invalid_json") from None
    path = _path_to(value, lambda leaf: isinstance(leaf, float) and math.isinf(leaf))
    return None if path is None else clip(path.removeprefix("."))


def _check_surrogates(value: Json) -> None:
    path = _path_to(value, lambda leaf: isinstance(leaf, str) and _HALF.search(leaf) is not None)
    if path is not None:
        path = clip(path.removeprefix("."))
        raise _bad(f"{path}: the text holds half of a surrogate pair.", "invalid_unicode", path)


def _path_to(value: object, wrong: Callable[[object], bool]) -> str | None:
    """Where the first key or value stands that is `wrong`: `.messages[0].content`.

    It is written on the way back, because most paths lead nowhere and keys may be long.
    """
    if isinstance(value, dict):
        for key, inner in value.items():
            if wrong(key):
                return f".{key}"
            if (below := _path_to(inner, wrong)) is not None:
                return f".{key}{below}"
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            if (below := _path_to(inner, wrong)) is not None:
                return f"[{index}]{below}"
    elif wrong(value):
        return ""
    return None
