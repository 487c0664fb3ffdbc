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
        key: that clients must send as `Authorization: Bearer KEY` or `x-api-key: KEY`; None lets everybody pass.
        public: paths without a key. They are compared whole, with the string that the router compares too, so no
            spelling of a path is public for the guard and something else for the router.
    """

    def __init__(self, app: ASGIApp, key: str | None, public: Collection[str]) -> None:
        self._app = app
        self._digest = None if key is None else _digest(key.encode())
        self._public = frozenset(public)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on. Raises the 401."""
        if self._digest is None or scope["type"] != "http" or scope["path"] in self._public or self._knows(scope):
            await self._app(scope, receive, send)
        else:
            raise _refusal()

    def _knows(self, scope: Scope) -> bool:
        # All are hashed first and all are compared, so that neither length nor content shows in the time it takes.
        right = [hmac.compare_digest(_digest(key), self._digest or b"") for key in _sent(scope)]
        return any(right)


def owner_of(scope: Scope) -> bytes:
    """Whose request this is: a digest of the key that was sent, whether or not one is asked for."""
    return _digest(next(iter(_sent(scope)), b""))


def _sent(scope: Scope) -> list[bytes]:
    """The keys of a request: OpenAI's clients send `Authorization`, Anthropic's `x-api-key`, some both."""
    keys = []
    for name, value in scope["headers"]:
        scheme, _, key = value.partition(b" ")
        if name == b"authorization" and scheme.lower() == b"bearer":
            keys.append(key.strip())
        elif name == b"x-api-key":
            keys.append(value.strip())
    return keys


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _refusal() -> ApiError:
    return ApiError(
        401,
        "A valid API key is needed: send the header 'Authorization: Bearer KEY' or 'x-api-key: KEY'.",
        "invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )
