"""The one exit for errors: whatever went wrong becomes OpenAI's error object with a fitting status.

Routes of another dialect (`Endpoint.refuse`) write the same `ApiError` in their own form.

    {"error": {"message": str, "type": str, "param": str | null, "code": str}}

Texts of foreign exceptions never leave the server: they may name files, addresses or classes. Nor is more than a
little of what a client sent sent back to it.
"""

from collections.abc import Callable

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

from quire.base.clip import MAX_ECHO_CHARS, clip
from quire.base.errors import EngineDeadError, EngineError, RequestError

MAX_MESSAGE_CHARS = 2000

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "overloaded_error",
}
"""Error type by status; any other status is an invalid_request_error."""

STATUS_OF_CODE = {"model_not_found": 404}
"""Codes of RequestErrors that are not a plain 400."""


class ApiError(Exception):
    """An answer other than 200.

    Args:
        status: HTTP status.
        message: a sentence for the sender.
        code: a stable word for programs.
        param: the field at fault.
        headers: sent with it (`Retry-After`, `Allow`, ...).
    """

    def __init__(
        self, status: int, message: str, code: str, param: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = headers or {}

    @property
    def body(self) -> bytes:
        """The error object as JSON, never more than a few KiB."""
        error = {
            "message": clip(self.message, MAX_MESSAGE_CHARS),
            "type": "server_error" if self.code == "engine_dead" else TYPES.get(self.status, "invalid_request_error"),
            "param": None if self.param is None else clip(self.param, MAX_ECHO_CHARS),
            "code": self.code,
        }
        return msgspec.json.encode({"error": error})

    def response(self) -> Response:
        """The whole answer."""
        return Response(self.body, self.status, self.headers, "application/json")


Refuse = Callable[[ApiError], Response]
"""Writes an error as an answer, in the form of one dialect."""


def unavailable(message: str, code: str, retry_after_s: int = 1) -> ApiError:
    """A 503 that says when to come back."""
    return ApiError(503, message, code, headers={"Retry-After": str(retry_after_s)})


def as_api_error(error: BaseException) -> ApiError:
    """What to tell the client about `error`. Anything unknown is a 500 without details."""
    match error:
        case ApiError():
            return error
        case RequestError():
            return ApiError(STATUS_OF_CODE.get(error.code, 400), error.message, error.code, error.param)
        case EngineDeadError():
            return unavailable(
                "The engine has stopped; it is being restarted, unless the server's log says otherwise.",
                "engine_dead",
                error.retry_after_s,
            )
        case EngineError():
            # The same request would fail again; clients try a 500 twice more unless they are told.
            return ApiError(500, str(error), "engine_error", headers={"x-should-retry": "false"})
        case HTTPException():
            return _of_router(error)
    return ApiError(500, "Internal error; the server's log has it under this x-request-id.", "internal_error")


def _of_router(error: HTTPException) -> ApiError:
    headers = dict(error.headers or {})
    if error.status_code == 404:
        return ApiError(404, "There is no such URL here; the API lives under /v1.", "not_found", headers=headers)
    if error.status_code == 405:
        allowed = ", ".join(sorted(headers.get("Allow", "").split(", ")))
        return ApiError(405, f"This URL takes only {allowed}.", "method_not_allowed", headers={"Allow": allowed})
    return ApiError(error.status_code, "The request was refused.", "bad_request", headers=headers)
