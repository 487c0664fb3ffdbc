"""Request bodies: bytes become typed fields or a refusal, by rules stricter than Python's `json`.

Refused before any field is looked at: no or another content type, compressed bodies, bodies over the limit (before they
are read) or too slow, anything but UTF-8, duplicate keys, NaN and infinities, lone surrogates, more than 64 levels.
"""

import asyncio
import json
import math
import re
from collections.abc import Iterator
from typing import TypeVar

import msgspec
from starlette.requests import Request

from quire.server.errors import ApiError, clip

BODY_TIMEOUT_S = 60.0
MAX_DEPTH = 64
LONG_BODY_BYTES = 256 << 10
"""Longer bodies are parsed in a thread, so that other requests get their turns."""

PIECE_BYTES = 64 << 10
MAX_VALUES = 1 << 20
"""A parser holds everybody up while it makes a million Python objects; longer texts cost next to nothing."""

Json = dict[str, object]
T = TypeVar("T")

_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


async def read_json(request: Request, max_bytes: int) -> Json:
    """The body of `request` as a JSON object. Raises ApiError; the body is not read if its length is over the limit."""
    _check_headers(request, max_bytes)
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            raw = await _read(request, max_bytes)
    except TimeoutError:
        raise ApiError(
            408,
            f"The body did not arrive within {BODY_TIMEOUT_S:g} s.",
            "body_timeout",
            headers={"Connection": "close"},
        ) from None
    return parse_object(raw) if len(raw) <= LONG_BODY_BYTES else await asyncio.to_thread(parse_object, raw)


def parse_object(raw: bytes) -> Json:
    """Strict JSON that must be an object. Raises ApiError."""
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


def to_struct(kind: type[T], body: Json) -> T:
    """`body` as a struct, strictly typed. Raises ApiError that names the field."""
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        path = path.rstrip("`").lstrip(".")
        if missing := re.search(r"missing required field `(\w+)`", message):
            path = f"{path}.{missing[1]}".lstrip(".")
            message = "this field is required"
        message = message.replace("`", "").replace("Expected", "expected")
        raise ApiError(400, f"{path}: {message}." if path else message, "invalid_type", path or None) from None


def _check_headers(request: Request, max_bytes: int) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "Send the header 'Content-Type: application/json'.", "unsupported_content_type")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "Send the body uncompressed.", "unsupported_content_encoding")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length[:20]) > max_bytes:
        raise _too_large(max_bytes)


async def _read(request: Request, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > max_bytes:
            raise _too_large(max_bytes)
        parts.append(part)
    return b"".join(parts)


def _too_large(max_bytes: int) -> ApiError:
    # The rest of the body is not read, so the connection cannot be used again.
    return ApiError(
        413, f"The body is larger than {max_bytes} bytes.", "request_too_large", headers={"Connection": "close"}
    )


def _bad(message: str, code: str, param: str | None = None) -> ApiError:
    return ApiError(400, message, code, param)


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
        path = next(path for path, leaf in _leaves(json.loads(text)) if isinstance(leaf, float) and math.isinf(leaf))
        raise _bad(f"{path}: this number is too large.", "invalid_value", path) from None
    except json.JSONDecodeError as error:
        raise _bad(f"The body is not valid JSON: {error.msg} at character {error.pos}.", "invalid_json") from None
    except ValueError:
        # The interpreter's limit on digits of an integer, which keeps parsing linear.
        raise _bad("The body holds a number of too many digits.", "invalid_json") from None
    return value


def _check_surrogates(value: Json) -> None:
    for path, leaf in _leaves(value):
        if isinstance(leaf, str) and any("\ud800" <= char <= "\udfff" for char in leaf):
            raise _bad(f"{clip(path)}: the text holds half of a surrogate pair.", "invalid_unicode", clip(path))


def _leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Every key and every value that is no container, with its path (`messages[0].content`)."""
    if isinstance(value, dict):
        for key, inner in value.items():
            below = f"{path}.{key}" if path else key
            yield below, key
            yield from _leaves(inner, below)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{index}]")
    else:
        yield path, value
