"""The rules of supervision without processes: waits, sums of counters, suspects, what is merged."""

import asyncio
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.base.errors import EngineDeadError, RequestError
from quire.engine.pulse import Pulse, shared_page
from quire.engine.streams import Stream
from quire.engine.suspects import APART_S, MARGIN, MEMORY_S, MOST, Suspects, fingerprint
from quire.engine.trials import Trials
from quire.messages.control import CrashReport, Tally
from quire.messages.outputs import CompletionOutput, RequestOutput
from quire.messages.params import RequestOutputKind, SamplingParams
from quire.messages.request import Request
from quire.messages.wire import Delta, Stats, Submit
from quire.server.backoff import Backoff
from quire.server.tallies import total

pytestmark = pytest.mark.plain


def request(number: int, id: str = "a") -> Request:
    return Request(id=id, token_ids=[number], params=SamplingParams(max_tokens=5))


def test_waits_double_to_a_minute() -> None:
    backoff = Backoff(1.0, 60.0, 100)
    assert [backoff.died(0.0) for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]


@given(st.lists(st.one_of(st.none(), st.floats(0, 200)), max_size=40))
def test_whoever_served_for_long_begins_anew(lives: list[float | None]) -> None:
    backoff, before = Backoff(1.0, 60.0, 10), 0.0
    for served in lives:
        wait = backoff.died(served)
        if wait is None:
            assert served is None, "an engine that comes up is not given up"
            assert backoff.deaths >= 10
            return
        if served is not None and served >= 60:
            assert wait == 1
        else:
            assert wait == min(60, max(1, 2 * before))
        before = wait


def test_an_engine_that_never_comes_up_is_given_up() -> None:
    backoff = Backoff(1.0, 60.0, 3)
    assert [backoff.died(None) for _ in range(3)] == [1, 2, None]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def asked(suspects: Suspects, number: int, id: str = "a") -> tuple[int, bool]:
    """Of how many tokens a trial it is, and whether it is tried alone."""
    submit = suspects.submit(request(number, id))
    return submit.trial, submit.alone


def test_a_suspect_is_known_by_what_it_asks() -> None:
    clock = Clock()
    suspects = Suspects(clock)
    assert asked(suspects, 1) == (0, False)
    suspects.learn(CrashReport(fingerprint(request(1)), 7))
    assert asked(suspects, 1, id="another") == (7 + MARGIN, False)
    assert asked(suspects, 2) == (0, False)
    suspects.learn(CrashReport(fingerprint(request(1)), 3))
    assert asked(suspects, 1) == (7 + MARGIN, False), "two that ask the same, one death"
    clock.now += APART_S
    suspects.learn(CrashReport(fingerprint(request(1)), 3))
    assert asked(suspects, 1) == (7 + MARGIN, True), "two cores have died"
    suspects.learn(CrashReport(fingerprint(request(1)), 0, quarantined=True))
    suspects.learn(CrashReport(fingerprint(request(1)), 0))
    with pytest.raises(RequestError) as refused:
        suspects.submit(request(1))
    assert refused.value.code == "poison_request"
    clock.now += MEMORY_S + 1
    assert asked(suspects, 1) == (0, False)
    assert not suspects


def test_who_is_served_is_no_suspect_any_more() -> None:
    suspects = Suspects()
    suspects.learn(CrashReport(fingerprint(request(1)), 7))
    suspects.clear(request(1))
    assert asked(suspects, 1) == (0, False)


def test_suspects_are_bounded() -> None:
    suspects = Suspects()
    for number in range(2 * MOST):
        suspects.learn(CrashReport(number.to_bytes(4, "big"), 0))
    assert len(suspects) == MOST


@given(st.data())
def test_one_trial_at_a_time_and_all_have_their_turn(data: st.DataObject) -> None:
    pulse = Pulse()
    begun: list[str] = []
    running: set[str] = set()
    refused = data.draw(st.sets(st.integers(0, 9)))

    def begin(client: bytes, submit: Submit) -> bool:
        assert pulse.tried == submit.request.id, "named before it begins"
        begun.append(submit.request.id)
        return int(submit.request.id) not in refused

    trials = Trials(pulse, begin)
    for number in range(10):
        trials.add(b"", Submit(request(number, str(number)), trial=data.draw(st.integers(1, 5))))
    while pulse.tried:
        assert len(begun) == int(pulse.tried) + 1, "nothing else was begun"
        id = pulse.tried
        running.add(id)
        if data.draw(st.booleans()):
            trials.saw([Delta("other", 0, [1]), Delta(id, 0, [1])])
        else:
            trials.gone([id])
    assert begun == [str(number) for number in range(10)]
    assert running == {str(number) for number in range(10)} - {str(number) for number in refused}


def tried(trial: int = 0, alone: bool = False, id: str = "") -> Submit:
    return Submit(request(1, id), trial, alone)


def test_a_trial_is_named_only_while_no_other_could_be_the_cause() -> None:
    pulse, begun = Pulse(), []
    trials = Trials(pulse, lambda client, submit: begun.append(submit.request.id) is None)
    trials.add(b"", tried(5, id="suspect"))
    assert pulse.tried == "suspect"
    trials.add(b"", tried(id="new"))
    assert (begun, pulse.tried) == (["suspect", "new"], "")
    trials.gone(["new"])
    assert pulse.tried == "suspect"


def test_who_was_there_twice_is_tried_alone() -> None:
    pulse, begun = Pulse(), []
    trials = Trials(pulse, lambda client, submit: begun.append(submit.request.id) is None)
    trials.add(b"", tried(id="old"))
    trials.add(b"", tried(5, alone=True, id="suspect"))
    trials.add(b"", tried(id="new"))
    assert (begun, trials.waiting) == (["old"], 2)
    trials.gone(["old"])
    assert (begun, pulse.tried) == (["old", "suspect"], "suspect")
    trials.saw([Delta("suspect", 0, [1] * 5)])
    assert (begun, pulse.tried, trials.waiting) == (["old", "suspect", "new"], "", 0)


def test_the_pulse_is_read_by_another() -> None:
    descriptor = shared_page()
    try:
        core, watcher = Pulse(descriptor), Pulse(descriptor)
        assert not watcher.serves, "it starts"
        core.ready(3.0)
        stats = Stats(1, 2, 0.5, 3, 4, 5, 6, 7)
        core.beat(stats)
        core.trial("req-ö")
        core.last_words("x" * 5000)
        assert watcher.stats == stats
        assert watcher.patience_s == 3.0
        assert watcher.serves
        assert 0 <= watcher.still_s() < 60
        assert watcher.tried == "req-ö"
        assert len(watcher.said) > 1000
        watcher.reset()
        assert (core.serves, core.tried, core.said) == (False, "", "")
    finally:
        os.close(descriptor)


def output(text: str, index: int = 0, end: str | None = None) -> RequestOutput:
    completion = CompletionOutput(index=index, text=text, token_ids=[ord(c) for c in text], finish_reason=end)
    return RequestOutput(
        request_id="a", prompt=None, prompt_token_ids=[1], outputs=[completion], finished=end is not None
    )


@given(st.lists(st.tuples(st.text(max_size=3), st.integers(0, 2), st.booleans()), min_size=1, max_size=30))
def test_a_slow_reader_gets_the_same_in_fewer_pieces(news: list[tuple[str, int, bool]]) -> None:
    async def scenario() -> None:
        stream = Stream(request(1), None, SamplingParams(output_kind=RequestOutputKind.DELTA, n=3))
        sent, got = {0: "", 1: "", 2: ""}, {0: "", 1: "", 2: ""}
        for text, index, read in news:
            stream.put(output(text, index))
            sent[index] += text
            if read:
                for completion in (await stream.get()).outputs:
                    got[completion.index] += completion.text
        stream.fail(EngineDeadError("x"))
        while True:
            try:
                taken = await stream.get()
            except EngineDeadError:
                break
            for completion in taken.outputs:
                got[completion.index] += completion.text
                assert completion.token_ids == [ord(c) for c in completion.text]
        assert got == sent

    asyncio.run(scenario())


def test_what_was_not_read_can_be_made_again() -> None:
    async def scenario() -> None:
        stream = Stream(request(1), None, SamplingParams(output_kind=RequestOutputKind.DELTA))
        reader = asyncio.create_task(stream.get())
        await asyncio.sleep(0)
        stream.put(output("lost"))
        stream.restart()
        await asyncio.sleep(0)
        assert not reader.done()
        stream.put(output("kept", end="stop"))
        assert (await reader).outputs[0].text == "kept"
        assert stream.taken

    asyncio.run(scenario())


def test_counters_are_added_up() -> None:
    first = [Tally("a", "A.", "counter", [("a_total", {"x": "1"}, 2.0), ("a_created", {"x": "1"}, 50.0)])]
    then = [Tally("a", "A.", "counter", [("a_total", {"x": "1"}, 3.0), ("a_created", {"x": "1"}, 40.0)])]
    more = [
        Tally("a", "A.", "counter", [("a_total", {"x": "2"}, 1.0)]),
        Tally("b", "B.", "counter", [("b_total", {}, 1.0)]),
    ]
    (a, b) = total([first, then, more])
    assert a.samples == [("a_total", {"x": "1"}, 5.0), ("a_created", {"x": "1"}, 40.0), ("a_total", {"x": "2"}, 1.0)]
    assert b.samples == [("b_total", {}, 1.0)]
    assert total([]) == []
