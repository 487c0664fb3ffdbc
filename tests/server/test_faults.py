"""Processes of a server die, hang and are told to stop, while clients read. What each of them sees is checked."""

import errno
import json
import signal
import socket
import threading
from pathlib import Path

import httpx
import pytest

from tests.server.mortal import FAST_MS, SLOW_MS, Reader, RunningServer, body, gone, server
from tests.server.mortal_core import DEADLY, STICKY, token
from tests.waiting import HANG_S, wait_for

pytestmark = pytest.mark.multi

PROMPT = [40, 41, 42]
LONG = 1500
STALL_S = 12
"""Longer than others keep this machine's processors to themselves: nothing may seem to hang that does not."""


def expected(prompt: list[int], count: int) -> list[int]:
    return [token(prompt, len(prompt) + index) for index in range(count)]


@pytest.fixture(scope="module")
def two() -> RunningServer:
    """Two front ends; tests leave it serving. Nothing here counts as hung: that a process has ended must be seen."""
    with server("api_server_count=2", "stream_write_timeout_s=1", "stall_timeout_s=3600") as family:
        yield family


def idle(family: RunningServer) -> bool:
    found = family.get("/load").json()
    return not (found["server_load"] or found["running"] or found["waiting"] or found["kv_cache_usage"])


def running(family: RunningServer) -> int:
    """Sequences that the engine works on."""
    return family.get("/load").json()["running"]


def begun(family: RunningServer, prompts: list[list[int]], tokens: int) -> list[Reader]:
    """A reader for each prompt, all of which have read something."""
    readers = [Reader(family, prompt, tokens) for prompt in prompts]
    for reader in readers:
        assert reader.begun.wait(HANG_S)
    return readers


def test_a_killed_engine_is_an_error_for_what_was_begun_and_nothing_for_the_rest(two: RunningServer) -> None:
    two.pace(SLOW_MS)
    readers = begun(two, [[50 + i] for i in range(4)], LONG)
    plain: list[httpx.Response] = []
    waiting = [threading.Thread(target=lambda i=i: plain.append(two.complete([60 + i], 300))) for i in range(3)]
    for thread in waiting:
        thread.start()
    wait_for(lambda: running(two) == 7)
    with two.barred():
        two.core.kill()
        two.pace(FAST_MS)
        wait_for(two.is_away)
        refused = two.complete([1], 1)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_dead")
        assert int(refused.headers["Retry-After"]) >= 1
        assert two.get("/live").status_code == 200
    wait_for(two.serves)
    for index, reader in enumerate(readers):
        reader.join(HANG_S)
        assert reader.error == "engine_dead"
        assert reader.tokens == expected([50 + index], len(reader.tokens)), "a prefix of what would have come"
    for thread in waiting:
        thread.join(HANG_S)
    assert [answer.status_code for answer in plain] == [200] * 3, "nothing had been sent, so they were begun again"
    assert two.complete(PROMPT, 5, return_token_ids=True).json()["choices"][0]["token_ids"] == expected(PROMPT, 5)
    wait_for(lambda: idle(two))


def test_an_engine_that_hangs_is_not_ready_and_is_begun_again() -> None:
    with server(f"stall_timeout_s={STALL_S}") as family:
        for how in ("stopped", "stuck"):
            core = family.core
            family.pace(SLOW_MS)
            readers = begun(family, [PROMPT], LONG)
            said = len(family.said)
            with family.barred():
                if how == "stopped":
                    core.suspend()
                else:
                    readers += begun(family, [[STICKY]], 10)
                wait_for(family.is_away)
                for reader in readers:
                    reader.join(HANG_S)
                    assert reader.error == "engine_dead"
            family.pace(FAST_MS)
            wait_for(family.serves)
            assert not core.is_running()
            wait_for(lambda said=said: "most recent call first" in "".join(family.said[said:]))
            assert family.complete([1], 1).status_code == 200
        family.core.suspend()
        all_die(family)


def test_a_request_that_kills_twice_is_refused_and_others_are_not(two: RunningServer) -> None:
    answers: dict[str, httpx.Response] = {}

    def ask(name: str, prompt: list[int], tokens: int) -> threading.Thread:
        thread = threading.Thread(target=lambda: answers.update({name: two.complete(prompt, tokens)}))
        thread.start()
        return thread

    two.pace(SLOW_MS)
    innocent = [ask(f"innocent {i}", [70 + i], 200) for i in range(3)]
    wait_for(lambda: running(two) == 3)
    victim = two.core
    guilty = ask("guilty", [DEADLY, 3], 10)
    wait_for(lambda: not victim.is_running())
    two.pace(FAST_MS)
    guilty.join(2 * HANG_S)
    assert answers["guilty"].status_code == 500
    for thread in innocent:
        thread.join(HANG_S)
    assert [answers[f"innocent {i}"].status_code for i in range(3)] == [200] * 3
    wait_for(two.serves)
    core = two.core
    for _ in range(4):
        again = two.complete([DEADLY, 3], 10)
        assert (again.status_code, again.json()["error"]["code"]) == (400, "poison_request")
    assert two.core.pid == core.pid, "every front end knows it"
    wait_for(lambda: "refused from now on" in two.text())
    wait_for(lambda: idle(two))


def test_a_front_end_that_dies_takes_only_its_own_with_it(two: RunningServer) -> None:
    two.pace(SLOW_MS)
    victim = two.fronts[0]
    short: list[Reader] = []
    endless: list[Reader] = []
    # Which front end a connection comes to is the kernel's choice.
    while not all(
        {reader.front for reader in readers} == {front.pid for front in two.fronts} for readers in (short, endless)
    ):
        short += begun(two, [[80 + len(short) + i] for i in range(4)], 400)
        endless += begun(two, [[180 + len(endless) + i] for i in range(4)], 1900)
    lost, kept = ([reader for reader in endless if (reader.front == victim.pid) == its] for its in (True, False))
    wait_for(lambda: running(two) == len(short) + len(endless))
    before = metric(two, "http_requests_total")
    restarts = metric(two, "front_end_restarts_total")
    victim.kill()
    wait_for(lambda: len(two.fronts) == 2 and victim.pid not in {front.pid for front in two.fronts})
    for reader in lost:
        reader.join(HANG_S)
    # What the dead one asked is forgotten long before it would have ended by itself.
    wait_for(lambda: running(two) <= sum(reader.front != victim.pid for reader in (*short, *endless)))
    two.pace(FAST_MS)
    for index, reader in enumerate(short):
        reader.join(HANG_S)
        assert reader.broken == (reader.front == victim.pid)
        if not reader.broken:
            assert reader.error is None
            assert reader.tokens == expected([80 + index], 400)
    for reader in kept:
        reader.leave()
    wait_for(lambda: idle(two))
    wait_for(lambda: metric(two, "front_end_restarts_total") == restarts + 1)
    assert metric(two, "http_requests_total") >= before, "counters never fall"


def test_a_front_end_that_hangs_is_replaced() -> None:
    with server(f"stall_timeout_s={STALL_S}", "api_server_count=2") as family:
        hung, other = family.fronts
        hung.suspend()
        wait_for(lambda: not hung.is_running() and len(family.fronts) == 2)
        assert other.is_running()
        wait_for(lambda: "most recent call first" in family.text())
        answer = family.complete(PROMPT, 5, return_token_ids=True).json()
        assert answer["choices"][0]["token_ids"] == expected(PROMPT, 5)
        all_die(family)


def metric(family: RunningServer, name: str) -> float:
    """The sum of a counter's series."""
    lines = family.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"quire:{name}"))


def test_front_ends_answer_for_each_other(two: RunningServer) -> None:
    before = metric(two, "prompt_tokens_total")
    for _ in range(10):
        two.complete([1, 2, 3], 2)
    for _ in range(6):
        assert metric(two, "prompt_tokens_total") == before + 30, "whoever is asked says the sum"
    two.pace(SLOW_MS)
    readers = begun(two, [[90]] * 6, 300)
    assert {two.get("/load").json()["server_load"] for _ in range(6)} == {6}
    two.pace(FAST_MS)
    for reader in readers:
        reader.join(HANG_S)
    asked = {"model": "default", "input": "hi", "max_output_tokens": 4, "temperature": 0}
    made = httpx.post(f"{two.url}/v1/responses", json=asked, timeout=HANG_S).json()
    for _ in range(6):
        assert two.get(f"/v1/responses/{made['id']}").json() == made
        more = {**asked, "previous_response_id": made["id"]}
        assert httpx.post(f"{two.url}/v1/responses", json=more, timeout=HANG_S).status_code == 200
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
            stop.wait(2 * HANG_S)

    scrapers = [threading.Thread(target=work) for work in (scrape, scrape, hang, hang)]
    for scraper in scrapers:
        scraper.start()
    readers = [Reader(two, [100 + i], 150) for i in range(6)]
    for index, reader in enumerate(readers):
        reader.join(HANG_S)
        assert reader.tokens == expected([100 + index], 150)
    stop.set()
    for scraper in scrapers:
        scraper.join(HANG_S)


def test_a_client_that_does_not_read_is_dropped(two: RunningServer) -> None:
    host, port = two.url.removeprefix("http://").split(":")
    text = json.dumps(body([5], 1900, stream=True, n=32, return_token_ids=True))
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(text)}\r\n\r\n"
    with socket.socket() as wire:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.connect((host, int(port)))
        two.pace(SLOW_MS)
        wire.sendall((head + text).encode())
        wait_for(lambda: running(two) == 32)
        two.pace(FAST_MS)
        other = Reader(two, PROMPT, 100)
        other.join(HANG_S)
        assert other.tokens == expected(PROMPT, 100), "nobody else waits for it"
        wait_for(lambda: idle(two))


def all_die(family: RunningServer) -> None:
    """The supervisor is killed, and soon nothing is left: no process, no port, no file."""
    # Supervisor, core, front ends with two text workers each.
    wait_for(lambda: len(family.all()) == 2 + 3 * len(family.fronts))
    everybody = family.all()
    addresses = {line.laddr for line in family.core.net_connections("unix") if "/quire-" in line.laddr}
    folder = Path(min(addresses)).parents[1]
    assert [one.name for one in folder.iterdir()] == [Path(min(addresses)).parent.name], "other cores left nothing"
    family.process.kill()
    wait_for(lambda: gone(everybody))
    assert not folder.exists()
    wait_for(lambda: is_free(int(family.url.rpartition(":")[2])))


def is_free(port: int) -> bool:
    """Whether nobody listens there. Not by binding it: an outgoing connection of anybody's may have been given it."""
    # From another address, as this connection might be given it, too.
    with socket.socket() as wire:
        wire.bind(("127.0.0.2", 0))
        return wire.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


def test_all_children_die_with_the_supervisor() -> None:
    """Whoever was dead or stopped before it: the others are tested where that happens."""
    with server() as one, server(wait=False) as other:
        other.wait()
        for family, first in ((one, one.core), (other, other.fronts[0])):
            everybody = family.all()
            first.kill()
            family.process.kill()
            wait_for(lambda everybody=everybody: gone(everybody))


def test_sigterm_drains_and_a_second_one_aborts() -> None:
    with server("api_server_count=2") as family, server("shutdown_timeout_s=3600", wait=False) as other:
        everybody = family.all()
        readers = begun(family, [[50 + i] for i in range(8)], 200)
        family.process.send_signal(signal.SIGTERM)
        assert family.process.wait(HANG_S) == 0
        for index, reader in enumerate(readers):
            reader.join(HANG_S)
            assert reader.tokens == expected([50 + index], 200)
            assert reader.error is None
            assert reader.done
        wait_for(lambda: gone(everybody))
        other.wait()
        everybody = other.all()
        other.pace(SLOW_MS)
        (reader,) = begun(other, [PROMPT], 1900)
        other.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "stopping" in other.text())
        other.process.send_signal(signal.SIGTERM)
        assert other.process.wait(HANG_S) == 0
        reader.join(HANG_S)
        assert reader.error == "shutting_down"
        wait_for(lambda: gone(everybody))


def test_a_signal_while_the_engine_loads_ends_everything() -> None:
    with server("api_server_count=2", "shutdown_timeout_s=3600", wait=False, barred=True) as family:
        wait_for(lambda: family.children("mortal_core"))
        family.core.suspend()
        family.url = f"http://127.0.0.1:{family.port()}"
        # The supervisor answers for itself and for who is not there yet.
        assert family.get("/live?x=1").status_code == 200
        assert family.get("/ready").status_code == 503
        refused = family.complete([5] * 9000, 1)
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
        assert refused.json()["error"]["code"] == "not_ready"
        everybody = family.all()
        family.process.send_signal(signal.SIGTERM)
        assert family.process.wait(HANG_S) == 0
        wait_for(lambda: gone(everybody))
