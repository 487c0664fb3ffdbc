"""What grammars change for the scheduler: who waits, and how a complete text ends."""

import pytest

from quire.messages.params import SamplingParams
from quire.messages.plan import StepResult
from quire.messages.request import Request
from quire.messages.state import GroupLayout, Layout, StateSpec
from quire.messages.structured import StructuredOutputsParams, grammar_key
from quire.scheduler.events import RecordedScheduler, replay
from quire.scheduler.limits import Limits
from quire.scheduler.scheduler import Scheduler

pytestmark = pytest.mark.plain

WANTED = StructuredOutputsParams(regex="ab")
KEY = grammar_key(WANTED)
LIMITS = Limits(max_num_seqs=4, max_num_batched_tokens=64)


def layout() -> Layout:
    spec = StateSpec(8)
    return Layout([GroupLayout(spec, 1, 4, 40)], 64)


def request(id: str, wanted: StructuredOutputsParams | None = WANTED, max_tokens: int = 8) -> Request:
    params = SamplingParams(max_tokens=max_tokens, seed=1, structured_outputs=wanted)
    return Request(id=id, token_ids=[1, 2, 3], params=params, eos_token_ids=[9])


@pytest.fixture
def scheduler():
    return Scheduler(LIMITS, layout())


def test_a_sequence_waits_for_its_grammar_and_is_in_nobodys_way(scheduler):
    scheduler.hold(KEY)
    for number in range(LIMITS.look_past + 3):
        scheduler.add(request(f"held {number}"), 0.0)
    scheduler.add(request("free", None), 0.0)
    plan = scheduler.plan(0.0)
    assert [new.params.structured_outputs for new in plan.new] == [None]
    scheduler.commit(StepResult(1, [plan.grants[0].row], [5]))
    scheduler.abort("free")
    assert scheduler.plan(0.0) is None and scheduler.has_work
    scheduler.ready(KEY)
    assert len(scheduler.plan(0.0).new) == 4
    scheduler.check()


def test_a_sequence_that_is_cancelled_while_it_waits_leaves_nothing(scheduler):
    scheduler.hold(KEY)
    scheduler.add(request("a"), 0.0)
    scheduler.abort("a")
    scheduler.ready(KEY)
    assert scheduler.plan(0.0) is None and not scheduler.has_work
    scheduler.check()


def test_a_plan_goes_ahead_of_a_token_that_the_grammar_has_not_seen_and_is_dropped_if_that_was_the_last(scheduler):
    scheduler.add(request("a"), 0.0)
    row = scheduler.plan(0.0).grants[0].row
    assert [grant.row for grant in scheduler.plan(0.0).grants] == [row]
    assert scheduler.commit(StepResult(1, [row], [5], complete=[row]))[-1].finish_reason == "stop"
    # A mask after the end allows nothing: what it says then concerns nobody.
    assert scheduler.commit(StepResult(2, [row], [0], errors={row: "no way on"})) == []
    assert not scheduler.has_work
    scheduler.check()


def test_nobody_is_waited_for_while_grammars_run(scheduler):
    assert scheduler.open
    scheduler.add(request("a"), 0.0)
    row = scheduler.plan(0.0).grants[0].row
    assert not scheduler.open
    scheduler.commit(StepResult(1, [row], [5], complete=[row]))
    assert scheduler.open


@pytest.mark.parametrize("max_tokens", [8, 2])
def test_a_complete_text_ends_with_stop_and_keeps_its_last_token(scheduler, max_tokens):
    scheduler.add(request("a", max_tokens=max_tokens), 0.0)
    scheduler.commit(StepResult(1, [scheduler.plan(0.0).grants[0].row], [5]))
    row = scheduler.plan(0.0).grants[0].row
    text, end = scheduler.commit(StepResult(2, [row], [6], complete=[row]))
    assert (text.token_ids, text.finish_reason) == ([6], None)
    assert (end.token_ids, end.finish_reason, end.stop_reason) == ([], "stop", None)
    assert not scheduler.has_work
    scheduler.check()


def test_the_event_log_replays_grammars(tmp_path):
    log = tmp_path / "events"
    recorded = RecordedScheduler(LIMITS, layout(), str(log))
    recorded.hold(KEY)
    recorded.add(request("a"), 0.0)
    assert recorded.plan(0.0) is None
    recorded.ready(KEY)
    row = recorded.plan(1.0).grants[0].row
    recorded.commit(StepResult(1, [row], [6], complete=[row]))
    assert replay(str(log)).counters.finished == 1
