"""Processes of a server die, hang and are told to stop, while clients read. What each of them sees is checked."""

import json
import signal
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.server.mortal import Reader, RunningServer, body, gone, server, until
from tests.server.mortal_core import DEADLY, STICKY, token

pytestmark = pytest.mark.multi

PROMPT = [40, 41, 42]
LONG = 1500


def expected(prompt: list[int], count: int) -> list[int]:
    return [token(prompt, len(prompt) + index) for index in range(count)]


@pytest.fixture(scope="module")
def two() -> RunningServer:
    """Two front ends; tests leave it serving."""
    with server("api_server_count=2", "stream_write_timeout_s=1") as family:
        yield family


def idle(family: RunningServer) -> bool:
    found = family.get("/load").json()
    return not (found["server_load"] or found["running"] or found["waiting"] or found["kv_cache_usage"])


def test_a_killed_engine_is_an_error_for_what_was_begun_and_nothing_for_the_rest(two: RunningServer) -> None:
    readers = [Reader(two, [50 + i], LONG) for i in range(4)]
    for reader in readers:
        assert reader.begun.wait(20)
    plain: list[httpx.Response] = []
    waiting = [threading.Thread(target=lambda i=i: plain.append(two.complete([60 + i], 300))) for i in range(3)]
    for thread in waiting:
        thread.start()
    until(lambda: two.get("/load").json()["running"] == 7)
    two.core.kill()
    assert until(lambda: not two.ready_now()) < 3, "it takes 0.1 s on a quiet machine"
    refused = two.complete([1], 1)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_dead")
    assert int(refused.headers["Retry-After"]) >= 1
    assert two.get("/live").status_code == 200
    until(two.ready_now)
    for index, reader in enumerate(readers):
        reader.join(20)
        assert reader.error == "engine_dead"
        assert reader.tokens == expected([50 + index], len(reader.tokens)), "a prefix of what would have come"
    for thread in waiting:
        thread.join(30)
    assert [answer.status_code for answer in plain] == [200] * 3, "nothing had been sent, so they were begun again"
    assert two.complete(PROMPT, 5, return_token_ids=True).json()["choices"][0]["token_ids"] == expected(PROMPT, 5)
    until(lambda: idle(two))


def test_an_engine_that_hangs_is_not_ready_and_is_begun_again() -> None:
    with server("stall_timeout_s=2") as family:
        for how in ("stopped", "stuck"):
            core = family.core
            readers = [Reader(family, PROMPT, LONG)]
            assert readers[0].begun.wait(20)
            before = len(family.said)
            if how == "stopped":
                core.suspend()
            else:
                readers.append(Reader(family, [STICKY], 10))
            assert until(lambda: not family.ready_now()) < 10, "the limit is 2 s"
            until(family.ready_now)
            assert not core.is_running()
            for reader in readers:
                reader.join(20)
                assert reader.error == "engine_dead"
            assert "most recent call first" in "".join(family.said[before:]), "its stacks are in the log"
            assert family.complete([1], 1).status_code == 200
        family.core.suspend()
        all_die(family)


def test_a_request_that_kills_twice_is_refused_and_others_are_not(two: RunningServer) -> None:
    answers: dict[str, httpx.Response] = {}

    def ask(name: str, prompt: list[int], tokens: int) -> threading.Thread:
        thread = threading.Thread(target=lambda: answers.update({name: two.complete(prompt, tokens)}))
        thread.start()
        return thread

    innocent = [ask(f"innocent {i}", [70 + i], 200) for i in range(3)]
    until(lambda: two.get("/load").json()["running"] == 3)
    guilty = ask("guilty", [DEADLY, 3], 10)
    guilty.join(60)
    assert answers["guilty"].status_code == 500
    for thread in innocent:
        thread.join(60)
    assert [answers[f"innocent {i}"].status_code for i in range(3)] == [200] * 3
    until(two.ready_now)
    core = two.core
    for _ in range(4):
        again = two.complete([DEADLY, 3], 10)
        assert (again.status_code, again.json()["error"]["code"]) == (400, "poison_request")
    assert two.core.pid == core.pid, "every front end knows it"
    assert "refused from now on" in two.text()
    until(lambda: idle(two))


def test_a_front_end_that_dies_takes_only_its_own_with_it(two: RunningServer) -> None:
    readers = [Reader(two, [80 + i], 400) for i in range(12)]
    endless = [Reader(two, [180 + i], 1900) for i in range(12)]
    for reader in (*readers, *endless):
        assert reader.begun.wait(20)
    victim = two.fronts[0]
    before = metric(two, "http_requests_total")
    restarts = metric(two, "front_end_restarts_total")
    victim.kill()
    until(lambda: len(two.fronts) == 2 and victim.pid not in {front.pid for front in two.fronts})
    for index, reader in enumerate(readers):
        reader.join(30)
        if not reader.broken:
            assert reader.error is None
            assert reader.tokens == expected([80 + index], 400)
    assert {reader.broken for reader in readers} == {True, False}
    # What the dead one asked is forgotten long before it would have ended by itself.
    survivors = sum(not reader.broken for reader in endless)
    assert two.get("/load").json()["running"] <= survivors < len(endless)
    for reader in endless:
        reader.leave()
    until(lambda: idle(two))
    until(lambda: metric(two, "front_end_restarts_total") == restarts + 1)
    assert metric(two, "http_requests_total") >= before, "counters never fall"


def test_a_front_end_that_hangs_is_replaced() -> None:
    with server("stall_timeout_s=2", "api_server_count=2") as family:
        hung, other = family.fronts
        hung.suspend()
        assert until(lambda: not hung.is_running() and len(family.fronts) == 2) < 12, "the limit is 2 s"
        assert other.is_running()
        assert "most recent call first" in family.text(), "its stacks are in the log"
        answer = family.complete(PROMPT, 5, return_token_ids=True).json()
        assert answer["choices"][0]["token_ids"] == expected(PROMPT, 5)
        until(lambda: len(family.all()) == 8)
        all_die(family)


def metric(family: RunningServer, name: str) -> float:
    """The sum of a counter's series."""
    lines = family.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"quire:{name}"))


def test_front_ends_answer_for_each_other(two: RunningServer) -> None:
    until(lambda: len(two.fronts) == 2)
    before = metric(two, "prompt_tokens_total")
    for _ in range(10):
        two.complete([1, 2, 3], 2)
    for _ in range(6):
        assert metric(two, "prompt_tokens_total") == before + 30, "whoever is asked says the sum"
    readers = [Reader(two, [90], 300) for _ in range(6)]
    for reader in readers:
        assert reader.begun.wait(20)
    assert {two.get("/load").json()["server_load"] for _ in range(6)} == {6}
    for reader in readers:
        reader.join(30)
    asked = {"model": "default", "input": "hi", "max_output_tokens": 4, "temperature": 0}
    made = httpx.post(f"{two.url}/v1/responses", json=asked, timeout=20).json()
    for _ in range(6):
        assert two.get(f"/v1/responses/{made['id']}").json() == made
        more = {**asked, "previous_response_id": made["id"]}
        assert httpx.post(f"{two.url}/v1/responses", json=more, timeout=20).status_code == 200
    assert two.get("/v1/responses/resp_nobody").status_code == 404


def test_scrapes_hurt_nobody(two: RunningServer) -> None:
    stop = threading.Event()

    def scrape() -> None:
        while not stop.is_set():
            assert two.get("/metrics").status_code == 200

    def hang() -> None:
        host, port = two.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as wire:
            wire.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            stop.wait(30)

    scrapers = [threading.Thread(target=work) for work in (scrape, scrape, hang, hang)]
    for scraper in scrapers:
        scraper.start()
    readers = [Reader(two, [100 + i], 150) for i in range(6)]
    for index, reader in enumerate(readers):
        reader.join(30)
        assert reader.tokens == expected([100 + index], 150)
    stop.set()
    for scraper in scrapers:
        scraper.join(30)


def test_a_client_that_does_not_read_is_dropped(two: RunningServer) -> None:
    host, port = two.url.removeprefix("http://").split(":")
    text = json.dumps(body([5], 1900, stream=True, n=32, return_token_ids=True))
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(text)}\r\n\r\n"
    with socket.socket() as wire:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.connect((host, int(port)))
        wire.sendall((head + text).encode())
        until(lambda: two.get("/load").json()["running"] == 32)
        other = Reader(two, PROMPT, 100)
        other.join(20)
        assert other.tokens == expected(PROMPT, 100), "nobody else waits for it"
        until(lambda: idle(two), 30)


def all_die(family: RunningServer) -> None:
    """The supervisor is killed, and soon nothing is left: no process, no port, no file."""
    everybody = family.all()
    assert len(everybody) == 2 + 3 * len(family.fronts), "supervisor, core, front ends with two text workers each"
    addresses = {line.laddr for line in family.core.net_connections("unix") if "/quire-" in line.laddr}
    folder = Path(min(addresses)).parents[1]
    assert [one.name for one in folder.iterdir()] == [Path(min(addresses)).parent.name], "other cores left nothing"
    family.process.kill()
    assert until(lambda: gone(everybody)) < 5
    assert not folder.exists()
    # Not by binding the port: an outgoing connection of anybody's may have been given it by now.
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(family.url.rpartition(":")[2])), timeout=5)


def test_all_children_die_with_the_supervisor() -> None:
    """Whoever was dead or stopped before it: the others are tested where that happens."""
    with server() as one, server(wait=False) as other:
        other.wait()
        for family, first in ((one, one.core), (other, other.fronts[0])):
            everybody = family.all()
            first.kill()
            family.process.kill()
            assert until(lambda everybody=everybody: gone(everybody)) < 5


def test_sigterm_drains_and_a_second_one_aborts() -> None:
    with server("api_server_count=2") as family, server(step_ms=50, wait=False) as other:
        everybody = family.all()
        readers = [Reader(family, [50 + i], 200) for i in range(8)]
        for reader in readers:
            assert reader.begun.wait(20)
        family.process.send_signal(signal.SIGTERM)
        assert family.process.wait(20) == 0
        for index, reader in enumerate(readers):
            reader.join(5)
            assert reader.tokens == expected([50 + index], 200)
            assert reader.error is None
            assert reader.done
        until(lambda: gone(everybody))
        other.wait()
        everybody = other.all()
        reader = Reader(other, PROMPT, 1900)
        assert reader.begun.wait(20)
        other.process.send_signal(signal.SIGTERM)
        until(lambda: "stopping" in other.text())
        began = time.monotonic()
        other.process.send_signal(signal.SIGTERM)
        assert other.process.wait(20) == 0
        assert time.monotonic() - began < 3
        reader.join(5)
        assert reader.error == "shutting_down"
        until(lambda: gone(everybody))


def test_a_signal_while_the_engine_loads_ends_everything() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with server("api_server_count=2", f"port={port}", wait=False) as family:
        until(lambda: family.children("mortal_core"))
        family.core.suspend()
        family.url = f"http://127.0.0.1:{port}"
        # The supervisor answers for itself and for who is not there yet.
        assert family.get("/live?x=1").status_code == 200
        assert family.get("/ready").status_code == 503
        refused = family.complete([5] * 9000, 1)
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
        assert refused.json()["error"]["code"] == "not_ready"
        everybody = family.all()
        began = time.monotonic()
        family.process.send_signal(signal.SIGTERM)
        assert family.process.wait(20) == 0
        assert time.monotonic() - began < 3
        until(lambda: gone(everybody))
