"""The guard: every URL needs a key but the few public ones, unknown URLs included. Keys are never logged."""

from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from quire.server.errors import ApiError
from quire.server.keys import ANYBODY, Caller, Keys, digest

CALLER = "quire.caller"
"""Where a scope says who sent the request."""


class KeyGuard:
    """ASGI middleware that lets a request pass with a right key, or to a public path.

    Args:
        app: what it guards.
        keys: of which one must be sent as `Authorization: Bearer KEY` or `x-api-key: KEY`; None lets everybody pass.
        public: paths without a key. They are compared whole, with the string that the router compares too, so no
            spelling of a path is public for the guard and something else for the router.
    """

    def __init__(self, app: ASGIApp, keys: Keys | None, public: Collection[str]) -> None:
        self._app = app
        self._keys = keys
        self._public = frozenset(public)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on. Raises the 401."""
        if self._keys is None or scope["type"] != "http" or scope["path"] in self._public:
            caller: Caller | None = ANYBODY
        else:
            caller = self._keys.find(_sent(scope))
        if caller is None:
            raise _refusal()
        scope[CALLER] = caller
        await self._app(scope, receive, send)


def caller_of(scope: Scope) -> Caller:
    """Who sent the request."""
    caller: Caller = scope[CALLER]
    return caller


def owner_of(scope: Scope) -> bytes:
    """Whose stored responses the request may see: a digest of its key's name; of the key where none is asked for."""
    name = caller_of(scope).name
    return digest(name.encode() if name else next(iter(_sent(scope)), b""))


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


def _refusal() -> ApiError:
    return ApiError(
        401,
        "A valid API key is needed: send the header 'Authorization: Bearer KEY' or 'x-api-key: KEY'.",
        "invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )
