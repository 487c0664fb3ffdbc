"""What comes over the wire before any field is read: limits, methods, odd framing."""

import json
import socket
import time
from typing import Any

import httpx
import pytest

from quire.server import body
from quire.server.app import ROUTES
from tests.server.fake_engine import ANSWER
from tests.server.plain_bytes import talk
from tests.server.serving import Serving
from tests.waiting import HANG_S, wait_for

pytestmark = pytest.mark.plain

CHAT = {"model": "org/fake-model", "messages": [{"role": "user", "content": "hi"}]}
RAW = json.dumps(CHAT).encode()
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
LAST = b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(RAW) + RAW


def error_of(answer: bytes) -> tuple[int, Any]:
    head, _, text = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(text)["error"]


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_a_wrong_method_names_the_right_ones(http: httpx.Client, route: Any) -> None:
    path = route.path.replace("{model:path}", "org/fake-model")
    wrong = "GET" if route.method == "POST" else "POST"
    answer = http.request(wrong, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == ("POST" if route.method == "POST" else "GET, HEAD")
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error.get("code", "method_not_allowed") == "method_not_allowed"


@pytest.mark.parametrize("route", [route for route in ROUTES if route.method == "GET"], ids=lambda route: route.path)
def test_get_routes_answer_head(http: httpx.Client, route: Any) -> None:
    made = http.post("/v1/responses", json={"model": "org/fake-model", "input": "hi"}).json()
    answer = http.head(route.path.replace("{model:path}", "org/fake-model").replace("{response_id}", made["id"]))
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("path", ["/v1/foo", "/foo", "/v1/chat/completions/", "/V1/models", "/v1/embedding"])
def test_an_unknown_url(http: httpx.Client, path: str) -> None:
    answer = http.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"] == {
        "message": "There is no such URL here; the API lives under /v1.",
        "type": "not_found_error",
        "param": None,
        "code": "not_found",
    }


def test_a_body_over_the_limit_is_not_read() -> None:
    with Serving(max_body_bytes=1000) as running:
        status, error = error_of(talk(running, HEAD + b"Content-Length: 67108864\r\n\r\n"))
        assert (status, error["code"]) == (413, "request_too_large")
        chunk = b"400\r\n" + b" " * 1024 + b"\r\n"
        status, error = error_of(talk(running, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", chunk))
        assert (status, error["code"]) == (413, "request_too_large")
        assert talk(running, HEAD + LAST).startswith(b"HTTP/1.1 200"), "the limit is for this body only"


def test_expect_continue_is_refused_before_the_body() -> None:
    with Serving(max_body_bytes=1000) as running:
        answer = talk(running, HEAD + b"Expect: 100-continue\r\nContent-Length: 67108864\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 413")


def test_a_slow_body_times_out_and_hurts_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "BODY_TIMEOUT_S", 0.3)
    with Serving() as running:
        with socket.create_connection(("127.0.0.1", running.port), timeout=HANG_S) as slow:
            slow.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
            # In one piece: a client whose body comes a moment later might be late, too.
            assert talk(running, HEAD + LAST).startswith(b"HTTP/1.1 200")
            status, error = error_of(b"".join(iter(lambda: slow.recv(65536), b"")))
        assert (status, error["code"]) == (408, "body_timeout")
        assert len(running.engine.submitted) == 1


def test_a_body_in_tiny_chunks(serving: Serving) -> None:
    padded = RAW + b" " * 20_000
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in padded) + b"0\r\n\r\n"
    began = time.process_time()
    answer = talk(serving, HEAD + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n", chunks)
    assert ANSWER.encode() in answer
    assert time.process_time() - began < 20


def test_a_long_url_and_large_headers(serving: Serving) -> None:
    assert talk(serving, b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\nHost: x\r\n\r\n")[:12] in (b"HTTP/1.1 414", b"")
    status, error = error_of(talk(serving, b"GET /?" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"))
    assert (status, error["code"]) == (414, "uri_too_long")
    status, error = error_of(talk(serving, b"GET /live HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000 + b"\r\n\r\n"))
    assert (status, error["code"]) == (431, "headers_too_large")
    status, error = error_of(talk(serving, b"GET /live HTTP/1.1\r\nHost: x\r\n" + b"X: a\r\n" * 100 + b"\r\n"))
    assert (status, error["code"]) == (431, "headers_too_large")


def test_two_lengths_are_no_request(serving: Serving) -> None:
    answer = talk(
        serving, HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /live HTTP/1.1\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"200 OK" not in answer


def test_several_requests_on_one_connection(serving: Serving) -> None:
    first = HEAD + b"Content-Length: %d\r\n\r\n" % len(RAW) + RAW
    assert talk(serving, first + HEAD + LAST).count(b"HTTP/1.1 200 OK") == 2


def test_garbage_is_no_request(serving: Serving, http: httpx.Client) -> None:
    for garbage in (b"\x16\x03\x01\x02\x00\x01\x00", b"\x00" * 100, b"GET\r\n\r\n", b"SSH-2.0-x\r\n"):
        answer = talk(serving, garbage)
        # A line that is not finished waits for its end.
        if answer:
            assert error_of(answer)[1]["code"] == "invalid_http"
    assert http.get("/live").status_code == 200


def test_the_access_log_is_one_line_without_secrets(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="quire.server.access"), Serving(disable_access_log=False) as running:
        with running.http() as http:
            http.get("/live%0ainjected?key=secret", headers={"authorization": "Bearer sk-secret"})
        wait_for(lambda: caplog.records)
    (record,) = [record for record in caplog.records if record.name == "quire.server.access"]
    line = record.getMessage()
    assert line.startswith("GET /live%0ainjected 404 ")
    assert "secret" not in line
    assert "\n" not in line
