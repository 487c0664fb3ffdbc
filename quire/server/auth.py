"""Keys: every URL needs one but the few public ones, unknown URLs included. Compared in constant time, never logged."""

import hashlib
import hmac
from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from quire.server.errors import ApiError


class KeyGuard:
    """ASGI middleware that lets a request pass with the right key, or to a public path.

    Args:
        app: what it guards.
        key: that clients must send as `Authorization: Bearer KEY`; None lets everybody pass.
        public: paths without a key. They are compared whole, with the string that the router compares too, so no
            spelling of a path is public for the guard and something else for the router.
    """

    def __init__(self, app: ASGIApp, key: str | None, public: Collection[str]) -> None:
        self._app = app
        self._digest = None if key is None else _digest(key.encode())
        self._public = frozenset(public)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401."""
        if self._digest is None or scope["type"] != "http" or scope["path"] in self._public or self._knows(scope):
            await self._app(scope, receive, send)
        else:
            await _refusal().response()(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        sent = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, key = sent.partition(b" ")
        # Both are hashed first, so that neither length nor content shows in the time it takes.
        return hmac.compare_digest(_digest(key.strip()), self._digest or b"") and scheme.lower() == b"bearer"


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _refusal() -> ApiError:
    return ApiError(
        401,
        "A valid API key is needed: send the header 'Authorization: Bearer KEY'.",
        "invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )
