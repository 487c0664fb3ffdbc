"""The entrance that every request passes: an id for it, limits on URL and headers, the last catch, the access log."""

import re
import time
import uuid
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quire.base.clip import clip
from quire.base.logging import get_logger
from quire.server.errors import ApiError, Refuse, as_api_error
from quire.server.metrics import Metrics
from quire.server.watch import ClientGoneError

log = get_logger(__name__)
access = get_logger("quire.server.access")

MAX_URL_BYTES = 8 << 10
MAX_HEADER_BYTES = 64 << 10
MAX_HEADERS = 100
CLIENT_GONE = 499
"""Status in log and metrics, never sent."""

_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class RequestMiddleware:
    """ASGI middleware around everything else.

    Args:
        app: the application.
        metrics: counts answers.
        access_log: whether each answer is logged in a line.
        dialects: how errors are written on the paths that do not write OpenAI's.
        root: path that a proxy in front may have put before ours; served with and without it.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, access_log: bool, dialects: Mapping[str, Refuse], root: str = ""
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._access_log = access_log
        self._dialects = dialects
        self._root = root.rstrip("/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; whatever is raised becomes an error object if nothing was sent yet."""
        if scope["type"] != "http":
            return
        if self._root and scope["path"].startswith(f"{self._root}/"):
            scope = {**scope, "path": scope["path"].removeprefix(self._root)}
        record = RequestRecord(scope, send)
        try:
            _check_sizes(scope)
            await self._app(scope, receive, record.send)
        except (ClientDisconnect, ClientGoneError):
            record.status = record.status or CLIENT_GONE
        except Exception as error:
            await self._answer(error, record, scope, receive)
        finally:
            self._metrics.answered(scope["path"], scope["method"], record.status)
            if self._access_log:
                access.info("%s", record.line(), extra={"fields": record.fields()})

    async def _answer(self, error: Exception, record: "RequestRecord", scope: Scope, receive: Receive) -> None:
        answer = as_api_error(error)
        if answer.code == "internal_error":
            log.error("request %s failed", record.id, exc_info=error, extra={"fields": {"request_id": record.id}})
        if record.status:
            raise error
        await self._dialects.get(scope["path"], ApiError.response)(answer)(scope, receive, record.send)


class RequestRecord:
    """One request on its way: its id, and the status it got (0 until then)."""

    def __init__(self, scope: Scope, send: Send) -> None:
        asked = Headers(scope=scope).get("x-request-id", "")
        # A client's id is a label: echoed if it is harmless, never a key for anything.
        self.id = asked if _SANE_ID.fullmatch(asked) else f"req_{uuid.uuid4().hex}"
        self.status = 0
        self._scope = scope
        self._send = send
        self._began = time.monotonic()

    async def send(self, message: Message) -> None:
        """Pass a message on; the first one gets the request's id."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["x-request-id"] = self.id
        await self._send(message)

    def fields(self) -> dict[str, object]:
        """The same for programs."""
        milliseconds = round(1000 * (time.monotonic() - self._began), 1)
        return {"request_id": self.id, "status": self.status, "milliseconds": milliseconds}

    def line(self) -> str:
        """For the access log: the URL as it came, percent-encoded, so no line breaks."""
        path = clip(self._scope.get("raw_path", b"").decode("ascii", "replace"))
        seconds = time.monotonic() - self._began
        return f"{self._scope['method'][:16]} {path} {self.status} {1000 * seconds:.1f}ms {self.id}"


def _check_sizes(scope: Scope) -> None:
    if len(scope.get("raw_path", b"")) + len(scope["query_string"]) > MAX_URL_BYTES:
        raise ApiError(414, "The URL is too long.", "uri_too_long", headers={"Connection": "close"})
    headers = scope["headers"]
    if len(headers) > MAX_HEADERS or sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES:
        raise ApiError(431, "The headers are too large.", "headers_too_large", headers={"Connection": "close"})
