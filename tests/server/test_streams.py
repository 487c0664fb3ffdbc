"""What happens to requests that do not come to their end: clients that leave, engines that fail, full queues."""

import contextlib
import gc
import itertools
import json
import socket
import threading
from typing import Any

import httpx
import openai
import pytest

from quire.server import sse
from quire.server.openai import chat as chat_endpoint
from quire.server.protocol import BoundedProtocol
from tests.server.fake_engine import FakeEngine
from tests.server.serving import Serving
from tests.waiting import wait_for

pytestmark = pytest.mark.plain

MODEL = "org/fake-model"
HI: Any = [{"role": "user", "content": "hi"}]
ENDLESS = {"ignore_eos": True}
CHAT = {"model": MODEL, "messages": HI, **ENDLESS}
PATH = b"/v1/chat/completions"
HEAD = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
OF_REQUESTS = {"quire", "starlette", "uvicorn"}
SUCCESS = "quire:request_success_total"
PROMPTS = {"model": MODEL, "prompt": ["a", "b", "c"], "n": 2, "max_tokens": 90_000, **ENDLESS}


def slow(**options: Any) -> FakeEngine:
    return FakeEngine(step_s=0.02, max_model_len=100_000, **options)


def idle(running: Serving) -> bool:
    service = running.service
    return not (running.engine.open or service.admission.open or service.open_watches)


def metric(running: Serving, name: str, **labels: str) -> float:
    value = running.service.metrics.registry.get_sample_value(name, labels)
    return 0.0 if value is None else value


@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", PROMPTS)])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_request(path: str, body: dict[str, Any], stream: bool) -> None:
    with Serving(slow()) as running:
        raw = json.dumps({**body, "stream": stream}).encode()
        client = socket.create_connection(("127.0.0.1", running.port))
        client.sendall(HEAD % (path.encode(), len(raw)) + raw)
        wait_for(lambda: running.engine.open)
        if stream:
            assert client.recv(100).startswith(b"HTTP/1.1 200")
        client.close()
        wait_for(lambda: idle(running))
        assert metric(running, SUCCESS, model_name=MODEL, finished_reason="abort") == 1
        answered = {"route": path, "method": "POST", "status": "200" if stream else "499"}
        wait_for(lambda: metric(running, "quire:http_requests_total", **answered))


def test_many_clients_that_come_and_go_leave_nothing() -> None:
    with Serving(slow()) as running, running.http() as http:

        def visit(number: int) -> None:
            with http.stream(
                "POST", "/v1/chat/completions", json={**CHAT, "stream": True, "n": 1 + number % 3}
            ) as answer:
                for _, _line in zip(range(number % 7), answer.iter_lines(), strict=False):
                    pass

        threads = [threading.Thread(target=visit, args=(number,)) for number in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_for(lambda: idle(running))
        assert len(running.engine.submitted) == 32


def test_requests_leave_nothing_to_the_collector() -> None:
    """Objects that know each other would stay until the collector of cycles looks."""
    whole, long = {**CHAT, "max_tokens": 2}, {**CHAT, "max_tokens": 2000}
    bodies = [whole, {**whole, "stream": True}, {**whole, "n": 2}, {**whole, "temperature": 9}]
    with Serving(slow(), disable_access_log=True) as running:

        def ask(body: dict[str, Any], leaves: bool = False) -> None:
            raw = json.dumps(body).encode()
            with socket.create_connection(("127.0.0.1", running.port)) as client:
                client.sendall(HEAD.replace(b"x\r", b"x\r\nConnection: close\r") % (PATH, len(raw)) + raw)
                if leaves:
                    wait_for(lambda: running.engine.open)
                while not leaves and client.recv(4096):
                    pass
            wait_for(lambda: idle(running))

        def ask_all() -> None:
            for body in bodies:
                ask(body)
            ask(long, leaves=True)
            ask({**long, "stream": True}, leaves=True)

        ask_all()
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            ask_all()
            gc.collect()
            found = [repr(each) for each in gc.garbage if type(each).__module__.partition(".")[0] in OF_REQUESTS]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert not found


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_every_write_to_a_client_fails_once(stream: bool, raises: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The k-th, for every k: its request ends, and nothing of it is left."""
    connected, left = BoundedProtocol.connection_made, 0

    def connect(protocol: BoundedProtocol, transport: Any) -> None:
        connected(protocol, transport)
        write = transport.write

        def fail(data: bytes) -> None:
            nonlocal left
            left -= 1
            if left:
                write(data)
            elif raises:
                raise OSError("no more of this")
            else:
                transport.abort()

        transport.write = fail

    monkeypatch.setattr(BoundedProtocol, "connection_made", connect)
    raw = json.dumps({**CHAT, "max_tokens": 6, "stream": stream}).encode()
    with Serving(FakeEngine(step_s=0.005)) as running:
        for k in itertools.count(1):
            left = k
            with socket.create_connection(("127.0.0.1", running.port)) as client:
                client.sendall(HEAD.replace(b"x\r", b"x\r\nConnection: close\r") % (PATH, len(raw)) + raw)
                with contextlib.suppress(ConnectionResetError):
                    while client.recv(4096):
                        pass
            wait_for(lambda: idle(running))
            if left > 0:
                break
        assert k > (8 if stream else 2), "there are a head and a body at least"
        reasons = ("length", "abort", "error")
        ends = [metric(running, SUCCESS, model_name=MODEL, finished_reason=reason) for reason in reasons]
        assert ends[0] and sum(ends) == k, "each has one outcome"


def test_a_body_that_is_never_finished_admits_nothing() -> None:
    with Serving() as running:
        client = socket.create_connection(("127.0.0.1", running.port))
        client.sendall(HEAD % (b"/v1/chat/completions", 99) + b"{")
        client.close()
        gone = {"route": "/v1/chat/completions", "method": "POST", "status": "499"}
        wait_for(lambda: metric(running, "quire:http_requests_total", **gone))
        assert running.engine.submitted == []


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_an_engine_that_dies_gives_streams_an_error_and_an_end(path: str) -> None:
    body = CHAT if "chat" in path else PROMPTS
    with Serving(slow()) as running, running.http() as http:
        with http.stream("POST", path, json={**body, "stream": True}) as answer:
            assert answer.status_code == 200
            lines = answer.iter_lines()
            next(lines)
            running.call(running.engine.die)
            *_, error, done = [line.removeprefix("data: ") for line in lines if line]
        assert done == "[DONE]"
        assert json.loads(error)["error"]["code"] == "engine_dead"
        assert "/secret" not in error
        for probe in ("/ready", "/health", "/ping"):
            answer = http.get(probe)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
            assert answer.headers["retry-after"]
        assert http.get("/live").status_code == 200
        late = http.post(path, json=body)
        assert (late.status_code, late.json()["error"]["code"]) == (503, "engine_dead")
        assert late.json()["error"]["type"] == "server_error"
        assert "/secret" not in late.text
        wait_for(lambda: idle(running))


def test_an_engine_that_dies_gives_the_official_client_an_error() -> None:
    with Serving(slow()) as running, running.client() as client:
        stream = client.chat.completions.create(model=MODEL, messages=HI, stream=True, extra_body=ENDLESS)
        next(iter(stream))
        running.call(running.engine.die)
        with pytest.raises(openai.APIError, match="engine has stopped"):
            list(stream)
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(model=MODEL, messages=HI)


def test_an_engine_that_dies_fails_a_plain_request() -> None:
    with Serving(slow()) as running, running.http() as http:

        def kill() -> None:
            wait_for(lambda: running.engine.open)
            running.call(running.engine.die)

        threading.Thread(target=kill).start()
        answer = http.post("/v1/chat/completions", json=CHAT)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_dead")


def test_a_failed_sequence_is_an_error_and_not_an_answer() -> None:
    with Serving(FakeEngine(fail_at=3)) as running, running.http() as http:
        answer = http.post("/v1/chat/completions", json=CHAT)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "engine_error")
        assert answer.json()["error"]["message"] == "The logits were not finite."
        lines = http.post("/v1/chat/completions", json={**CHAT, "stream": True}).text.split("\n\n")
        assert json.loads(lines[-3].removeprefix("data: "))["error"]["code"] == "engine_error"
        assert lines[-2:] == ["data: [DONE]", ""]
        wait_for(lambda: idle(running))
        assert metric(running, SUCCESS, model_name=MODEL, finished_reason="error") == 2


def test_a_bug_is_a_500_without_details(caplog: pytest.LogCaptureFixture) -> None:
    def broken(prompt: list[int], index: int) -> list[int]:
        raise ValueError("/home/somebody/secret.py")

    with Serving(FakeEngine(broken)) as running, running.http() as http:
        for stream in (False, True):
            answer = http.post(
                "/v1/chat/completions", json={**CHAT, "stream": stream}, headers={"x-request-id": "mine"}
            )
            assert answer.status_code == 500, "also for a stream: nothing had been sent"
            assert answer.json()["error"]["code"] == "internal_error"
            assert "secret" not in answer.text
            assert answer.headers["x-request-id"] == "mine"
        wait_for(lambda: idle(running))
    assert any("mine" in record.getMessage() and record.exc_info for record in caplog.records)


def test_a_full_queue_refuses_at_once_and_opens_again() -> None:
    with Serving(slow(), max_queued_requests=2) as running, running.http() as http:
        with http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True, "n": 10}) as answer:
            assert answer.status_code == 200
            refused = http.post("/v1/completions", json={"model": MODEL, "prompt": "a"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "queue_full")
            assert refused.json()["error"]["type"] == "overloaded_error"
            assert int(refused.headers["retry-after"]) >= 1
            assert http.get("/health").status_code == 200, "busy is not broken"
        wait_for(lambda: idle(running))
        assert http.post("/v1/completions", json={"model": MODEL, "prompt": "a", "max_tokens": 1}).status_code == 200


def test_a_slow_first_token_gets_headers_and_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "KEEP_ALIVE_S", 0.05)
    monkeypatch.setattr(chat_endpoint, "KEEP_ALIVE_S", 0.05)
    with Serving(FakeEngine(pause_at=0)) as running, running.http() as http:
        body = {**CHAT, "stream": True, "max_tokens": 1}
        with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            # Headers and comments do not wait for the first token.
            lines = answer.iter_lines()
            comments = 0
            while comments < 2:
                comments += next(lines) == ": keep-alive"
            running.call(running.engine.resume)
            *_, last = [line for line in lines if line]
        assert last == "data: [DONE]"
    with Serving(FakeEngine(step_s=0.4)) as running, running.client() as client:
        stream = client.chat.completions.create(model=MODEL, messages=HI, stream=True, max_tokens=1)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "H"


def test_equal_request_ids_are_two_requests() -> None:
    with Serving(slow()) as running, running.http() as http:
        body = {**CHAT, "stream": True, "request_id": "same", "max_tokens": 5}
        headers = {"x-request-id": "same"}
        with (
            http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as first,
            http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as second,
        ):
            assert first.headers["x-request-id"] == second.headers["x-request-id"] == "same"
            assert first.read() and second.read()
        assert len(set(running.engine.submitted)) == 2


@pytest.mark.parametrize("sent", ["a b", "x" * 129, "ü", '"><script>'])
def test_ids_that_are_no_plain_words_are_replaced(http: httpx.Client, sent: str) -> None:
    answer = http.get("/live", headers=[(b"x-request-id", sent.encode())])
    assert answer.headers["x-request-id"].startswith("req_")
