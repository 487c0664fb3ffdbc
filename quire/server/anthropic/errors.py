"""Errors in Anthropic's form: {"type": "error", "error": {"type", "message"}}, and its status 529 for overload."""

import msgspec
from starlette.responses import Response

from quire.base.clip import clip
from quire.server.errors import MAX_MESSAGE_CHARS, ApiError
from quire.server.sse import named_event

OVERLOADED = 529
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "api_error",
    OVERLOADED: "overloaded_error",
}
"""Error type by status; any other status is an invalid_request_error."""


def refuse(error: ApiError) -> Response:
    """The whole answer."""
    answer = msgspec.json.encode({"type": "error", **_fields(error)})
    return Response(answer, _status(error), error.headers, "application/json")


def error_event(error: ApiError) -> bytes:
    """The event that ends a stream."""
    return named_event("error", _fields(error))


def _fields(error: ApiError) -> dict[str, object]:
    kind = TYPES.get(_status(error), "invalid_request_error")
    return {"error": {"type": kind, "message": clip(error.message, MAX_MESSAGE_CHARS)}}


def _status(error: ApiError) -> int:
    """A dead engine does not come back by itself, so it is no overload."""
    return OVERLOADED if error.status == 503 and error.code != "engine_dead" else error.status
