"""`quire bench serve` and its kin against a real server with a fake engine: what is sent, counted, told."""

import contextlib
import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.base.errors import ConfigError, EngineError
from quire.cli.load import report as figures
from quire.cli.load.arrivals import arrivals
from quire.cli.load.client import Line, Sample
from quire.cli.load.command import add_arguments, run
from quire.cli.load.plot import pace, shares
from quire.cli.load.traffic import Traffic, sessions
from quire.cli.parser import Parser
from tests.server.fake_engine import FakeEngine
from tests.server.serving import Serving
from tests.waiting import wait_for

pytestmark = pytest.mark.plain


def bench(command: str, *words: str) -> int:
    parser = Parser(f"bench {command}", "load")
    add_arguments(parser)
    return run(parser.parse(words))


def results(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("senders", [1, 2])
def test_every_token_is_counted(senders: int, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with Serving() as server:
        plot = tmp_path / "run.svg"
        words = ["--base-url", server.url, "--num-prompts", "9", "--input-len", "7", "--output-len", "5"]
        words += ["--vocab-size", "250", "--client-processes", str(senders), "--plot", str(plot)]
        assert bench("serve", *words, "--goodput", "ttft:60000", "--output-json", str(tmp_path / "r.json")) == 0
    result = results(capsys)
    assert (result["completed"], result["failed"]) == (9, 0)
    assert (result["total_input_tokens"], result["total_output_tokens"]) == (63, 45)
    assert result["goodput_share"] == 1.0
    assert 0 < result["median_ttft_ms"] <= result["p99_ttft_ms"] <= result["max_ttft_ms"]
    assert len({tuple(prompt) for prompt in server.engine.prompts}) == 9
    assert json.loads((tmp_path / "r.json").read_text()) == result
    assert len(ET.parse(plot).getroot().findall(".//{*}polyline")) == 4


@contextlib.contextmanager
def answering_from(count: int) -> Iterator[Serving]:
    """A server that answers nobody before so many requests are open at a time, and then takes its time."""
    with Serving(FakeEngine(pause_at=0, step_s=0.005)) as server, ThreadPoolExecutor(1) as aside:
        waiting = aside.submit(wait_for, lambda: server.engine.most_open >= count)
        waiting.add_done_callback(lambda _: server.call(server.engine.resume))
        yield server
        waiting.result()


def test_arrivals_do_not_wait_for_answers(capsys: pytest.CaptureFixture[str]) -> None:
    with answering_from(20) as server:
        words = ["--base-url", server.url, "--num-prompts", "20", "--request-rate", "100", "--output-len", "5"]
        assert bench("serve", *words, "--input-len", "4", "--vocab-size", "250") == 0
        assert server.engine.most_open == 20
    assert results(capsys)["request_rate"] == 100


def test_a_closed_loop_keeps_its_limit(capsys: pytest.CaptureFixture[str]) -> None:
    with answering_from(3) as server:
        words = ["--base-url", server.url, "--num-prompts", "12", "--max-concurrency", "3", "--output-len", "4"]
        assert bench("serve", *words, "--input-len", "4", "--vocab-size", "250") == 0
        assert server.engine.most_open == 3


def test_conversations_carry_what_was_said(capsys: pytest.CaptureFixture[str]) -> None:
    with Serving() as server:
        words = ["--base-url", server.url, "--num-prompts", "2", "--num-turns", "3", "--input-len", "4"]
        assert bench("multiturn", *words, "--output-len", "4") == 0
        assert server.template is not None
        assert [message["role"] for message in server.template.messages] == ["user", "assistant"] * 2 + ["user"]
    assert [row["completed"] for row in results(capsys)["turns"]] == [2, 2, 2]


def test_prompts_of_a_group_begin_alike() -> None:
    asked = Traffic(kind="prefix", requests=6, input_len=5, output_len=3, prefix_len=20, groups=2, vocab_size=250)
    prompts = [session.bodies[0]["prompt"] for session in sessions(asked)]
    assert len({tuple(prompt[:20]) for prompt in prompts}) == 2
    assert len({tuple(prompt) for prompt in prompts}) == 6
    assert prompts == [session.bodies[0]["prompt"] for session in sessions(asked)]


def test_a_trace_says_when_and_how_long(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    lines = [{"timestamp": 250, "input_length": 700, "output_length": 3, "hash_ids": [1, 2]}]
    lines += [{"timestamp": 500, "input_length": 600, "output_length": 2, "hash_ids": [1, 9]}]
    trace.write_text("\n".join(map(json.dumps, lines)))
    asked = Traffic(kind="trace", requests=9, input_len=1, output_len=1, trace=str(trace))
    first, second = sessions(asked)
    assert (first.due, second.due) == (0.25, 0.5)
    a, b = first.bodies[0]["prompt"], second.bodies[0]["prompt"]
    assert (len(a), len(b), first.bodies[0]["max_tokens"]) == (700, 600, 3)
    assert a[:512] == b[:512] and a[512:600] != b[512:600]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--request-rate", "0"], "--request-rate"),
        (["--num-prompts", "0"], "--num-prompts"),
        (["--goodput", "speed:9"], "--goodput"),
        (["--goodput", "ttft:nan"], "--goodput"),
        (["--extra-body", "[]"], "--extra-body"),
        (["--metric-percentiles", "101"], "--metric-percentiles"),
        (["--range-ratio", "1"], "--range-ratio"),
        (["--base-url", "ftp://x"], "not an address"),
        (["--trace-file", "/none"], "--trace-file"),
    ],
)
def test_bad_flags_are_named(words: list[str], complaint: str) -> None:
    with Serving() as server, pytest.raises(ConfigError, match=complaint):
        bench("serve", "--base-url", server.url, *words)


def test_failures_are_counted_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    with Serving() as server:
        words = ["--base-url", server.url, "--num-prompts", "4", "--input-len", "4", "--vocab-size", "250"]
        with pytest.raises(EngineError, match="status 400"):
            bench("serve", *words, "--extra-body", '{"top_p": 7}')
    with Serving(FakeEngine(fail_at=2)) as server, pytest.raises(EngineError, match="error event"):
        bench("serve", "--base-url", server.url, *words[2:])


def test_answers_that_break_their_schema_are_found() -> None:
    good = Sample(0.0, finish_reason="stop", text='{"name": "a", "age": 1, "member": true}')
    bad = Sample(0.0, finish_reason="stop", text='{"name": "a"}')
    cut = Sample(0.0, finish_reason="length", text='{"na')
    assert figures.validity([good, bad, cut]) == {"whole_answers": 2, "valid_answers": 1}


@given(st.lists(st.integers(1, 400), max_size=12))
def test_cuts_of_a_stream_change_nothing(cuts: list[int]) -> None:
    body = b"".join(b'data: {"choices":[{"text":"%d"}]}\n\n' % n for n in range(5))
    body += b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5}}\n\ndata: [DONE]\n\n'
    data = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    line, sample = Line(keep_text=True), Sample(0.0)
    line.expect(sample, None)
    begins = sorted({0, *(cut for cut in cuts if cut < len(data))})
    for begin, end in zip(begins, [*begins[1:], len(data)], strict=True):
        line.data_received(data[begin:end])
    assert (len(sample.stamps), sample.output_tokens, line.text) == (5, 5, "01234")


def test_arrivals_follow_rate_and_shape() -> None:
    even = arrivals(2000, 50.0, 100.0, seed=1)
    poisson = arrivals(2000, 50.0, 1.0, seed=1)
    assert even[-1] == pytest.approx(40, rel=0.02) and poisson[-1] == pytest.approx(40, rel=0.1)
    assert poisson == arrivals(2000, 50.0, 1.0, seed=1) != arrivals(2000, 50.0, 1.0, seed=2)

    def spread(times: list[float]) -> float:
        gaps = [b - a for a, b in zip([0.0, *times], times, strict=False)]
        return sum((gap - 0.02) ** 2 for gap in gaps) / len(gaps)

    assert spread(even) < spread(poisson) / 10


def test_points_of_the_picture() -> None:
    assert shares([3.0, 1.0]) == [(1.0, 0.5), (3.0, 1.0)] and shares([]) == []
    done = [Sample(10.0, stamps=[10.2, 10.9, 12.5])]
    assert pace(done) == [(0.0, 2.0), (1.0, 0.0), (2.0, 1.0)]
