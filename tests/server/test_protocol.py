"""Limits on connections: what a client may hold, and for how long."""

import contextlib
import socket
import time

import pytest

from quire.server import protocol
from tests.server.plain_bytes import talk
from tests.server.serving import Serving
from tests.server.test_transport import HEAD, RAW, error_of
from tests.waiting import HANG_S, wait_for

pytestmark = pytest.mark.plain


def said(client: socket.socket) -> bytes:
    """All until the server closes."""
    return b"".join(iter(lambda: client.recv(65536), b""))


def connect(running: Serving) -> socket.socket:
    return socket.create_connection(("127.0.0.1", running.port), timeout=HANG_S)


def test_headers_that_do_not_end_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.3)
    with Serving() as running, running.http() as http, connect(running) as slow:
        slow.sendall(b"GET /live HTTP/1.1\r\nHost: x\r\nX-A: ")
        assert http.get("/live").status_code == 200
        status, error = error_of(said(slow))
        assert (status, error["code"]) == (408, "header_timeout")
        assert http.get("/live").status_code == 200, "a connection that is idle between requests is kept"


@pytest.mark.parametrize("piece", [b"a" * 65536, b"X-A: b\r\n" * 8192])
def test_headers_without_end_take_no_memory(serving: Serving, piece: bytes) -> None:
    answer = talk(serving, b"GET /live HTTP/1.1\r\nHost: x\r\nX: ", *[piece] * 80)
    assert b" 200 " not in answer
    # The rest may meet a closed connection before the answer is read.
    if answer:
        assert error_of(answer)[1]["code"] == "headers_too_large"


def test_one_connection_too_many_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 3)
    with Serving() as running:
        held = [connect(running) for _ in range(3)]
        wait_for(lambda: len(running.server.server_state.connections) == 3)
        with connect(running) as surplus:
            answer = said(surplus)
        status, error = error_of(answer)
        assert (status, error["code"]) == (503, "too_many_connections")
        assert b"Retry-After: 1" in answer
        held[0].close()
        wait_for(lambda: len(running.server.server_state.connections) == 2)
        assert b" 200 " in talk(running, b"GET /live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        for one in held:
            one.close()


def test_another_machine_may_have_half_of_the_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 6)
    with Serving() as running, contextlib.ExitStack() as held:
        own = [held.enter_context(connect(running)) for _ in range(2)]
        wait_for(lambda: len(running.server.server_state.connections) == 2)
        monkeypatch.setattr(protocol, "is_own", lambda host: False)
        theirs = [held.enter_context(connect(running)) for _ in range(3)]
        wait_for(lambda: len(running.server.server_state.connections) == 5)
        with connect(running) as surplus:
            assert error_of(said(surplus))[1]["code"] == "too_many_connections"
        theirs[0].close()
        wait_for(lambda: len(running.server.server_state.connections) == 4)
        assert b" 200 " in talk(running, b"GET /live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        wait_for(lambda: len(running.server.server_state.connections) == 4)
        monkeypatch.setattr(protocol, "is_own", lambda host: True)
        # This machine's own are not counted: there may be a proxy on it.
        more = [held.enter_context(connect(running)) for _ in range(2)]
        wait_for(lambda: len(running.server.server_state.connections) == 6)
        assert own and more


def test_a_client_that_reads_nothing_is_given_up() -> None:
    body = b'{"tokens": [%b1]}' % (b"1," * 200_000)
    head = b"POST /detokenize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    with Serving(stream_write_timeout_s=0.3) as running, connect(running) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        # Answers of 200 KB that nobody reads; in the end our bytes are not taken any more either.
        with pytest.raises(ConnectionError):
            for _ in range(100):
                deaf.sendall(head % len(body) + body)
                time.sleep(0.01)
        wait_for(lambda: not running.server.server_state.connections)


def test_a_late_second_request_does_not_cut_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.05)
    with Serving() as running:
        running.engine.step_s = 0.05
        answer = talk(running, HEAD + b"Content-Length: %d\r\n\r\n" % len(RAW) + RAW + b"GET /live HTT")
        assert b" 200 " in answer
        assert b"header_timeout" in answer.partition(b"\r\n\r\n")[2]


def test_descriptors_bound_the_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(protocol.resource, "getrlimit", lambda what: (64, 1000))
    monkeypatch.setattr(protocol.resource, "setrlimit", lambda what, limits: asked.append(limits))
    assert protocol.connections_allowed() == 1000 - protocol.SPARE_DESCRIPTORS
    assert asked == [(1000, 1000)]
