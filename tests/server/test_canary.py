"""Every bad input on a real server, beside a canary that must not notice. See `liveness`."""

import json
import socket
import time
from collections.abc import Iterable

import httpx
import psutil
import pytest
import zmq

from quire.messages.codec import Codec
from quire.messages.wire import Hello
from tests.acceptance.serving import Served
from tests.server.cases import ALL, CHAT, COMPLETIONS, MODEL, Case, chat
from tests.server.form_cases import BOMB_CASE, DEAD_END, FORMATS
from tests.server.liveness import ask, family, toy_server, watched
from tests.server.plain_bytes import talk
from tests.server.test_bad_input import check
from tests.waiting import HANG_S

pytestmark = pytest.mark.multi

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
RAW = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}).encode()
SCHEMAS = 80


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with toy_server(tmp_path_factory.mktemp("toy")) as running:
        yield running


def send_all(served: Served, cases: Iterable[Case]) -> None:
    """Send cases one after the other and judge every answer."""
    wrong = []
    with httpx.Client(base_url=served.url, timeout=2 * HANG_S) as client:
        for case in cases:
            try:
                check(client, case)
            except AssertionError as error:
                wrong.append(f"{case.path} {case.name[:60]}: {error}")
    assert not wrong, "\n".join(wrong)


def test_bad_input_of_all_kinds(served):
    with watched(served):
        send_all(served, ALL)


def test_bad_forms_a_bomb_and_a_dead_end(served):
    with watched(served):
        send_all(served, [*FORMATS, BOMB_CASE, DEAD_END, FORMATS[0]])
        streamed = ask(served, {**json.loads(DEAD_END.raw), "stream": True}, CHAT)
    assert "error" in streamed.text
    assert ask(served, json.loads(DEAD_END.raw), CHAT).headers["x-should-retry"] == "false"


def test_asserts_keep_nothing_out(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONOPTIMIZE", "1")
    with toy_server(tmp_path / "optimized") as optimized:
        send_all(optimized, [*ALL, *FORMATS, DEAD_END])
        with watched(optimized):
            pass


def test_a_template_that_hangs_is_stopped(served):
    hang = chat("hang", "chat_template", code="template_timeout", messages=[{"role": "user", "content": "hang"}])
    with watched(served):
        send_all(served, [hang, chat("and on it goes", status=200)])


def test_more_schemas_than_anybody_has_leave_nothing(served):
    def schemas(first: int) -> Iterable[Case]:
        for number in range(first, first + SCHEMAS):
            form = {"json": {"const": {"number": number, "padding": "x" * 500}}}
            yield chat(f"schema {number}", status=200, structured_outputs=form, max_tokens=1)

    with watched(served):
        send_all(served, schemas(0))
        before = sum(process.memory_info().rss for process in family(served))
        send_all(served, schemas(SCHEMAS))
        grown = sum(process.memory_info().rss for process in family(served)) - before
    assert grown < SCHEMAS * (100 << 10), "compiled grammars are forgotten"


def test_odd_bytes_on_the_wire(served):
    absolute = b"GET http://evil/v1/models HTTP/1.1\r\nHost: evil\r\nConnection: close\r\n\r\n"
    with watched(served):
        for garbage in (b"\x16\x03\x01\x02\x00\x01\x00", b"\x00" * 100, b"GET\r\n\r\n", b"GET /" + b"a" * (1 << 20)):
            assert b" 200 " not in talk(served, garbage)
        assert b" 413 " in talk(served, HEAD + b"Content-Length: 67108864\r\n\r\n")
        assert b" 200 " not in talk(served, HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        assert b" 200 " in talk(served, absolute)
        assert b" 405 " in talk(served, b"GET /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        # More is announced than comes.
        with socket.create_connection(("127.0.0.1", httpx.URL(served.url).port or 80)) as wire:
            wire.sendall(HEAD + b"Content-Length: 1000\r\n\r\n" + RAW)
        ones = b"".join(b"1\r\n%c\r\n" % byte for byte in RAW + b" " * 30_000) + b"0\r\n\r\n"
        assert b" 200 " in talk(served, HEAD + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n", ones)


def test_many_choices_and_clients_that_leave(served):
    body = {"model": MODEL, "prompt": "a", "n": 128, "max_tokens": 250, "ignore_eos": True, "stream": True}
    with watched(served):
        assert ask(served, {**body, "max_tokens": 4, "stream": False}).json()["usage"]["completion_tokens"] == 512
        for _ in range(3):
            with httpx.stream("POST", f"{served.url}{COMPLETIONS}", json=body, timeout=HANG_S) as answer:
                next(answer.iter_lines())


def test_settings_of_a_row_die_with_their_request(served):
    with watched(served):
        for _ in range(4):
            fields = {"allowed_token_ids": [65], "bad_words": ["q"], "logit_bias": {"66": 100}, "repetition_penalty": 2}
            answer = ask(served, {"prompt": "a", "n": 8, "max_tokens": 6, "ignore_eos": True, **fields})
            assert {choice["text"] for choice in answer.json()["choices"]} == {chr(0x41 + 33) * 6}


def test_equal_seeds_say_the_same_whoever_runs_beside(served):
    asked = {"prompt": "abc", "seed": 7, "max_tokens": 40, "temperature": 2.0, "ignore_eos": True}
    alone = ask(served, asked).json()["choices"][0]["text"]
    with watched(served):
        crowd = ask(served, {**asked, "prompt": ["x", "abc", "y"]}).json()["choices"]
    assert crowd[1]["text"] == alone


def test_strangers_on_the_engines_socket(served):
    """The folder of the socket is its owner's alone; whoever gets in all the same can send no nonsense that matters."""
    engine = served.engine()
    path = next(str(link.laddr) for link in engine.net_connections("unix") if "/quire-" in str(link.laddr))
    hello = Codec(Hello).encode(Hello("0.0.0"))
    with watched(served), zmq.Context() as context:
        for frames in ([b"\x00" * 100], [b"\xc1"], [b"x" * (64 << 20)], [hello[:-1]], [b"", b""], [b"\x80\x04."]):
            with context.socket(zmq.DEALER) as stranger:
                stranger.linger = 0
                stranger.connect(f"ipc://{path}")
                stranger.send_multipart(frames)
                time.sleep(0.05)
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(path)
            raw.sendall(b"\xff" * 10_000)
    assert served.engine().pid == engine.pid
    assert psutil.pid_exists(engine.pid)


def test_a_prompt_larger_than_the_memory_waits_for_nothing(tmp_path):
    with toy_server(tmp_path / "small", "--num-gpu-blocks-override", "12") as small, watched(small):
        answer = ask(small, {"prompt": [5] * 200, "max_tokens": 2})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (400, "context_length_exceeded"), answer.text
        assert ask(small, {"prompt": [5] * 20, "max_tokens": 2}).status_code == 200
