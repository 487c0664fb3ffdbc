"""`quire chat --url` against a small HTTP server: what is asked, how an answer streams, how failures are told."""

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from quire.base.errors import ConfigError, EngineError, RequestError
from quire.cli import chat as command
from quire.cli.address import Address
from quire.cli.chat import Terminal, run
from quire.cli.remote import RemoteChat
from tests.cli.fakes import FakeModel, parsed

pytestmark = pytest.mark.plain

HELLO = [{"role": "user", "content": "hello"}]


class Server(ThreadingHTTPServer):
    """Answers every chat with `events`, unless the key is not "k"."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.events: list[str] = []
        self.bodies: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._send(200, json.dumps({"data": [{"id": "served"}]}).encode())

    def do_POST(self) -> None:
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        if self.headers["Authorization"] != "Bearer k":
            self._send(401, b'{"error": {"message": "wrong key"}}')
        else:
            self._send(200, b"".join(f"data: {event}\n\n".encode() for event in self.server.events))

    def _send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def piece(text: str) -> str:
    return json.dumps({"choices": [{"delta": {"content": text}}]})


def test_an_answer_streams(server: Server) -> None:
    first, usage = json.dumps({"choices": [{"delta": {"role": "assistant"}}]}), json.dumps({"choices": [], "usage": {}})
    server.events = [first, piece("Once "), piece("upon"), usage, "[DONE]"]
    remote = RemoteChat(Address.of(server.url, "--url"), "k", None, {"temperature": 0.5})
    assert "".join(remote.answer(HELLO)) == "Once upon"
    assert server.bodies == [{"model": "served", "messages": HELLO, "stream": True, "temperature": 0.5}]


def test_the_address_may_end_in_v1_and_the_model_be_named(server: Server) -> None:
    server.events = ["[DONE]"]
    remote = RemoteChat(Address.of(f"{server.url}/v1/", "--url"), "k", "mine", {})
    assert list(remote.answer(HELLO)) == []
    assert server.bodies[0]["model"] == "mine"


def test_a_refusal_is_told(server: Server) -> None:
    with pytest.raises(RequestError, match="the server says 401: wrong key; give --api-key"):
        list(RemoteChat(Address.of(server.url, "--url"), None, "m", {}).answer(HELLO))


@pytest.mark.parametrize(
    ("events", "complaint"),
    [([piece("a"), '{"error": {"message": "engine died"}}'], "engine died"), ([piece("a")], "before its end")],
)
def test_a_broken_stream_is_told(server: Server, events: list[str], complaint: str) -> None:
    server.events = events
    answer = RemoteChat(Address.of(server.url, "--url"), "k", "m", {}).answer(HELLO)
    assert next(answer) == "a"
    with pytest.raises(EngineError, match=complaint):
        next(answer)


@pytest.mark.parametrize("url", ["ftp://there", "http://", "http://there:x", "http://[::1", "http://127.0.0.1:1"])
def test_a_wrong_address_says_what_to_do(url: str) -> None:
    with pytest.raises(ConfigError, match=r"quire serve|write http://"):
        RemoteChat(Address.of(url, "--url"), None, None, {})


def test_the_command_talks_to_the_server_and_loads_nothing(server: Server) -> None:
    server.events = [piece("hi"), "[DONE]"]
    lines, out, model = iter(["hello", "/exit"]), io.StringIO(), FakeModel()
    words = ("--url", server.url, "--api-key", "k", "--seed", "4", "--max-tokens", "9")
    assert run(parsed(command, *words), model.make, Terminal(lambda prompt: next(lines), out)) == 0
    assert "Chatting with served" in out.getvalue() and "hi\n" in out.getvalue()
    assert (server.bodies[0]["seed"], server.bodies[0]["max_tokens"]) == (4, 9)
    assert not model.made_from
