"""`RemoteChat`: a conversation with a running server over HTTP, with the standard library only.

Speaks OpenAI's `/v1/chat/completions` with server-sent events; knows nothing of engines. Used by `chat --url`.
"""

import http.client
import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

from quire.base.errors import ConfigError, EngineError, RequestError
from quire.cli.address import Address
from quire.cli.local import Message

CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 600.0


class RemoteChat:
    """A server that speaks OpenAI's API.

    Args:
        address: of the server.
        key: sent as a bearer token, if there is one.
        model: its name on the server; None takes the first that the server lists.
        options: further fields of each request: temperature, max_tokens, ...

    Raises:
        ConfigError: nobody answers there.
    """

    def __init__(self, address: Address, key: str | None, model: str | None, options: Mapping[str, float]) -> None:
        self._address = address
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._options = dict(options)
        self.name = model or self._first_model()

    def answer(self, messages: Sequence[Message]) -> Generator[str, None, None]:
        """Pieces of the answer as they come. Closing the generator closes the connection, which ends the request."""
        body = {"model": self.name, "messages": list(messages), "stream": True, **self._options}
        with closing(self._connect()) as connection:
            for event in _events(self._ask(connection, "POST", "/v1/chat/completions", body)):
                if "error" in event:
                    raise EngineError(_complaint(event))
                for choice in event.get("choices", []):
                    yield choice.get("delta", {}).get("content") or ""

    def close(self) -> None:
        """Nothing is kept open between answers."""

    def _connect(self) -> http.client.HTTPConnection:
        address = self._address
        kind = http.client.HTTPSConnection if address.secure else http.client.HTTPConnection
        return kind(address.host, address.port, timeout=CONNECT_TIMEOUT_S)

    def _first_model(self) -> str:
        with closing(self._connect()) as connection:
            listed = json.loads(self._ask(connection, "GET", "/v1/models", None).read())
        return str(listed["data"][0]["id"])

    def _ask(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: object
    ) -> http.client.HTTPResponse:
        try:
            connection.connect()
            connection.sock.settimeout(ANSWER_TIMEOUT_S)
            content = None if body is None else json.dumps(body)
            connection.request(method, self._address.path + path, content, self._headers)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise ConfigError(f"no server answers at {self._address} ({error}); start one with: quire serve") from None
        if response.status != http.client.OK:
            remedy = "; give --api-key" if response.status == http.client.UNAUTHORIZED else ""
            raise RequestError(f"the server says {response.status}: {_refusal(response.read())}{remedy}")
        return response


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The JSON of each server-sent event, until `[DONE]`. Raises EngineError if the stream breaks off."""
    try:
        for line in response:
            data = line.decode("utf-8").strip().removeprefix("data:").strip()
            if data == "[DONE]":
                return
            if line.startswith(b"data:"):
                yield json.loads(data)
    except (OSError, http.client.HTTPException) as error:
        raise EngineError(f"the server broke off ({error}); see its log") from None
    raise EngineError("the server ended the answer before its end; see its log")


def _refusal(content: bytes) -> str:
    try:
        return _complaint(json.loads(content))
    except ValueError:
        return content[:200].decode("utf-8", "replace")


def _complaint(event: Any) -> str:
    error = event.get("error") if isinstance(event, dict) else None
    return str(error["message"]) if isinstance(error, dict) and "message" in error else json.dumps(event)
