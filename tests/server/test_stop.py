"""The end of a server: it drains, it is cut short, it never hangs; and its beginning: the port."""

import threading
from typing import Any

import httpx
import pytest

from quire.base.errors import ConfigError
from quire.config.fields import ServerConfig
from quire.server.greeting import greeting
from quire.server.sockets import bind
from tests.server.fake_engine import FakeEngine
from tests.server.serving import Serving
from tests.waiting import HANG_S, wait_for

pytestmark = pytest.mark.plain

MODEL = "org/fake-model"


def body(tokens: int, stream: bool) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "a", "max_tokens": tokens, "stream": stream, "ignore_eos": True}


def test_the_first_signal_drains() -> None:
    with Serving(FakeEngine(pause_at=1)) as running, running.http() as http:
        with http.stream("POST", "/v1/completions", json=body(30, True)) as answer:
            running.call(running.server.stop)
            wait_for(lambda: http.get("/ready").status_code == 503)
            late = http.post("/v1/completions", json=body(1, False))
            assert (late.status_code, late.json()["error"]["code"]) == (503, "shutting_down")
            assert http.get("/live").status_code == 200
            running.call(running.engine.resume)
            text = answer.read().decode()
        assert '"finish_reason":"length"' in text, "the running request is served to its end"
        assert "error" not in text
        running.thread.join(HANG_S)
        assert not running.thread.is_alive()


@pytest.mark.parametrize("how", ["a second signal", "the time is over"])
def test_a_drain_is_cut_short(how: str) -> None:
    timeout_s = 3600.0 if how == "a second signal" else 0.2
    with Serving(FakeEngine(pause_at=1), shutdown_timeout_s=timeout_s) as running, running.http() as http:
        plain: list[httpx.Response] = []
        other = threading.Thread(target=lambda: plain.append(http.post("/v1/completions", json=body(30, False))))
        other.start()
        with http.stream("POST", "/v1/completions", json=body(30, True)) as answer:
            wait_for(lambda: len(running.engine.open) == 2)
            running.call(running.server.stop)
            if how == "a second signal":
                running.call(running.server.stop)
            text = answer.read().decode()
        other.join(HANG_S)
        running.thread.join(HANG_S)
        assert not running.thread.is_alive()
        assert '"code":"shutting_down"' in text
        assert text.endswith("data: [DONE]\n\n")
        assert (plain[0].status_code, plain[0].json()["error"]["code"]) == (503, "shutting_down")
        assert running.engine.open == set()


def test_an_idle_server_stops_at_once() -> None:
    with Serving(shutdown_timeout_s=3600.0) as running, running.http() as http:
        http.get("/live")
        running.call(running.server.stop)
        running.thread.join(HANG_S)
        assert not running.thread.is_alive()


def test_a_port_that_is_taken() -> None:
    with bind(ServerConfig(port=0)) as first:
        port = first.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}.*--port"):
            bind(ServerConfig(port=port))


def test_a_host_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match="--host"):
        bind(ServerConfig(host="no.such.host.invalid", port=0))


def test_the_greeting_says_what_was_chosen() -> None:
    with Serving(served_model_name="mine") as running:
        running.engine.defaults.temperature = 0.6
        text = greeting(running.service, running._listener)
    for part in (
        "mine",
        "float32 on cpu",
        "256 tokens",
        "33 pages of 16",
        "temperature 0.6",
        "load 0.10 s",
        running.url,
    ):
        assert part in text
    assert "WARNING" not in text
    assert "curl" in text


def test_an_open_server_is_warned_of() -> None:
    with bind(ServerConfig(host="0.0.0.0", port=0)) as everywhere, Serving() as running:
        assert "set --api-key" in greeting(running.service, everywhere)
    assert ServerConfig().host == "127.0.0.1", "the default is reachable from this machine only"
