"""Request bodies: bytes become typed fields or a refusal. JSON itself is read by `text/strict_json.py`.

Refused before: no or another content type, compressed bodies, bodies over the limit (before they are read) or too slow.
"""

import asyncio
import re
from typing import TypeVar

import msgspec
from starlette.requests import Request

from quire.server.errors import ApiError
from quire.server.service import service_of
from quire.server.text.strict_json import Json, parse_object

BODY_TIMEOUT_S = 60.0
LONG_BODY_BYTES = 64 << 10
"""Longer bodies are parsed by a text worker, so that other requests get their turns."""

T = TypeVar("T")


async def read_json(request: Request, max_bytes: int) -> Json:
    """The body of `request` as a JSON object. Raises ApiError, RequestError.

    A body whose length is over the limit is not read.
    """
    _check_headers(request, max_bytes)
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            parts = await _read(request, max_bytes)
    except TimeoutError:
        raise ApiError(
            408,
            f"The body did not arrive within {BODY_TIMEOUT_S:g} s.",
            "body_timeout",
            headers={"Connection": "close"},
        ) from None
    if sum(map(len, parts)) <= LONG_BODY_BYTES:
        return parse_object(b"".join(parts))
    return await service_of(request).texts.parse(parts)


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
    headers = dict(request.headers.raw)
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != b"application/json":
        raise ApiError(415, "Send the header 'Content-Type: application/json'.", "unsupported_content_type")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise ApiError(415, "Send the body uncompressed.", "unsupported_content_encoding")
    length = headers.get(b"content-length", b"0")
    if length.isdigit() and int(length[:20]) > max_bytes:
        raise _too_large(max_bytes)


async def _read(request: Request, max_bytes: int) -> list[bytes]:
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > max_bytes:
            raise _too_large(max_bytes)
        parts.append(part)
    return parts


def _too_large(max_bytes: int) -> ApiError:
    # The rest of the body is not read, so the connection cannot be used again.
    return ApiError(
        413, f"The body is larger than {max_bytes} bytes.", "request_too_large", headers={"Connection": "close"}
    )
