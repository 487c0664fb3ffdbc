"""Which grammars are compiled, and when: those of whom is served next, so many at a time, and nobody waits for ever."""

from collections.abc import Iterable
from random import Random
from types import SimpleNamespace
from unittest import mock

import pytest

from quire.base.errors import RequestError
from quire.engine.core import EngineCore
from quire.engine.grammar_worker import PendingGrammar
from quire.engine.grammars import KEPT, GrammarService
from quire.messages.params import SamplingParams
from quire.messages.plan import StepPlan, StepResult
from quire.messages.request import Request
from quire.messages.structured import FIELD, StructuredOutputsParams, grammar_key
from quire.scheduler.limits import Limits
from quire.scheduler.scheduler import Scheduler
from tests.structured.test_scheduler import layout, request

pytestmark = pytest.mark.plain

ROWS = 4
MOST = ROWS + KEPT


class Worker:
    """Does so many jobs as it is told; `compiled` is what ranks hold."""

    descriptor = -1

    def __init__(self) -> None:
        self.todo: list[PendingGrammar] = []
        self.done: list[PendingGrammar] = []
        self.compiled: set[str] = set()
        self.times_compiled = 0
        self.waits = 0
        self.bad: set[str] = set()

    def submit(self, pending: PendingGrammar) -> None:
        self.todo.append(pending)

    def drop(self, keys: Iterable[str]) -> None:
        self.compiled.difference_update(keys)

    def collect(self) -> list[PendingGrammar]:
        done, self.done = self.done, []
        return done

    def wait(self) -> None:
        self.work(1)
        self.waits += 1
        assert self.waits < 10_000, "somebody waits for ever"

    def work(self, jobs: int) -> None:
        self.todo.sort(key=lambda pending: pending.number)
        for pending in self.todo[:jobs]:
            if pending.wanted.regex in self.bad:
                pending.error = RequestError("no such rule", FIELD, "invalid_schema")
            elif not pending.unwanted:
                pending.checked = True
                if pending.room:
                    pending.compiled = True
                    self.compiled.add(pending.key)
                    self.times_compiled += 1
                    assert len(self.compiled) <= MOST, "more grammars are compiled than there is room for"
        self.done += self.todo[:jobs]
        del self.todo[:jobs]


class Ranks:
    """Rows that begin need their grammar there; they end when they are told."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.begun: list[str] = []
        self.complete = True

    def step(self, plan: StepPlan) -> SimpleNamespace:
        wanted = [new.params.structured_outputs for new in plan.new]
        assert all(grammar_key(form) in self.worker.compiled for form in wanted), "a row begins without its grammar"
        self.begun = [form.regex for form in wanted]
        rows = [grant.row for grant in plan.grants if grant.samples]
        result = StepResult(plan.step, rows, [5] * len(rows), complete=rows if self.complete else [])
        return SimpleNamespace(wait=lambda: None, result=lambda: result)


class Engine:
    """A core over ranks that compute nothing."""

    def __init__(self, policy: str = "fcfs") -> None:
        self.scheduler = Scheduler(Limits(max_num_seqs=ROWS, max_num_batched_tokens=64, policy=policy), layout())
        self.worker = Worker()
        self.ranks = Ranks(self.worker)
        self.service = GrammarService(self.scheduler, self.worker)
        self.core = EngineCore(self.ranks, self.scheduler, self.service, mock.Mock(), 1)

    def add(self, name: str, form: int, priority: int = 0) -> None:
        made = request(name, StructuredOutputsParams(regex=f"a{{{form}}}"))
        made.priority = priority
        self.core.add(made)

    def turn(self, jobs: int = 1000, complete: bool = True) -> list[str]:
        """Some jobs, a step. Returns the forms that began."""
        self.worker.work(jobs)
        self.service.collect()
        self.ranks.begun, self.ranks.complete = [], complete
        self.core.turn()
        self.scheduler.check()
        return self.ranks.begun

    def assert_idle(self) -> None:
        self.turn()
        assert not self.scheduler.has_work and not self.service.busy
        assert not self.scheduler.roster.grammars.pending and not self.service._held
        assert len(self.worker.compiled) <= KEPT


@pytest.fixture
def engine():
    return Engine()


def test_a_burst_is_checked_at_once_compiled_piece_by_piece_and_forgotten(engine):
    for number in range(3 * MOST):
        engine.add(str(number), number)
    engine.worker.work(3 * MOST)
    assert all(pending.checked for pending in engine.worker.done)
    assert len(engine.worker.compiled) == MOST
    begun = [form for _ in range(3 * MOST) for form in engine.turn()]
    assert begun == [f"a{{{number}}}" for number in range(3 * MOST)]  # in their order, and none is waited for
    assert engine.worker.times_compiled == 3 * MOST
    engine.assert_idle()


@pytest.fixture
def full():
    """As many grammars are compiled as may be, and one that is urgent has taken the place of the last."""
    engine = Engine("priority")
    for number in range(MOST):
        engine.add(str(number), number, priority=1)
    engine.turn(complete=False)
    engine.add("urgent", 1000)
    engine.turn(complete=False)  # it is checked
    engine.turn(complete=False)  # and compiled
    assert len(engine.worker.compiled) == MOST and len(engine.service._held) == 1
    return engine


def test_whoever_comes_to_the_head_of_a_full_queue_is_next(full):
    assert full.turn() == []
    assert "a{1000}" in full.turn()
    assert sum(len(full.turn()) for _ in range(MOST)) == MOST - ROWS - (ROWS - 1)
    full.assert_idle()


def test_whoever_lost_its_place_waits_until_it_is_compiled_again(full):
    full.core.abort(["urgent", *(str(number) for number in range(MOST - 1))])
    assert full.turn(jobs=0) == []
    assert full.turn() == [f"a{{{MOST - 1}}}"]
    full.assert_idle()


def test_what_is_held_and_given_up_is_forgotten(engine):
    for number in range(MOST + 2):
        engine.add(str(number), number)
    engine.turn(complete=False)
    assert len(engine.service._held) == 2
    engine.core.abort([str(MOST)])
    assert len(engine.service._held) == 1
    engine.core.abort([str(number) for number in range(MOST + 2)])
    engine.assert_idle()


def test_a_grammar_that_is_given_up_and_asked_for_again_is_compiled(engine):
    engine.add("first", 1)
    engine.core.abort(["first"])
    engine.worker.work(1)  # nothing is done: nobody wants it
    engine.add("second", 1)
    assert engine.turn() == [] and engine.turn() == ["a{1}"]
    engine.assert_idle()


def test_what_was_given_up_while_it_was_compiled_makes_room_and_is_asked_for_again(engine):
    engine.add("first", 0)
    engine.worker.work(1)
    engine.core.abort(["first"])  # it is compiled, but that was not collected
    engine.turn()
    for number in range(1, MOST + 1):
        engine.add(str(number), number)
    engine.add("last", 0)
    begun = [form for _ in range(MOST) for form in engine.turn()]
    assert begun[-1] == "a{0}" and len(begun) == MOST + 1
    engine.assert_idle()


def test_a_turn_looks_at_no_more_grammars_the_more_are_held(engine):
    class Held(dict):
        def __iter__(self):
            raise AssertionError("all that are held are looked at")

    for number in range(3 * MOST):
        engine.add(str(number), number)
    engine.turn(complete=False)
    engine.service._held = Held(engine.service._held)
    engine.core.abort([str(3 * MOST - 1)])
    engine.turn()
    assert len(engine.service._held) == 2 * MOST - 1


def test_a_row_that_ends_before_its_plan_has_begun_it_makes_no_room_until_then(engine):
    for number in range(MOST + 1):
        engine.add(str(number), number)
    engine.worker.work(MOST + 1)
    engine.service.collect()
    plan = engine.scheduler.plan(0.0)
    engine.core.abort(["0"])
    pending = engine.ranks.step(plan)
    assert "a{0}" in engine.ranks.begun and len(engine.service._held) == 1
    engine.scheduler.commit(pending.result())
    engine.turn(jobs=0)
    assert len(engine.worker.compiled) == MOST - 1 and not engine.service._held


def test_a_call_that_is_made_again_after_it_was_ended_early_does_not_wait_for_ever(engine):
    for name in ("interrupted", "again"):
        engine.add(f"{name} 1", 1)
        engine.add(f"{name} 2", 2)
        if name == "interrupted":
            engine.core.abort([f"{name} 1", f"{name} 2"])
    assert engine.service.wait_for_all() == []
    assert engine.turn() == ["a{1}", "a{2}"]
    engine.assert_idle()


def test_grammars_in_use_take_no_place_of_those_that_are_kept_for_the_next_request(engine):
    for number in range(MOST):
        engine.add(str(number), number)
    engine.turn(complete=False)
    engine.core.abort([str(number) for number in range(KEPT)])
    for number in range(KEPT):
        engine.add(f"again {number}", number)
    assert not engine.service.busy and engine.worker.times_compiled == MOST


def test_what_nobody_uses_makes_room_before_what_is_needed_later():
    engine = Engine("priority")
    for number in range(MOST):
        engine.add(str(number), number, priority=1)
    engine.turn(complete=False)
    engine.core.abort([str(MOST - 1)])
    engine.core.add(request("free", None))
    engine.add("urgent", 1000)  # now whoever is last is beyond what is compiled at a time
    engine.turn(complete=False)
    engine.turn(complete=False)
    unused, last = (grammar_key(StructuredOutputsParams(regex=f"a{{{MOST - back}}}")) for back in (1, 2))
    assert unused not in engine.worker.compiled and last in engine.worker.compiled


def test_a_bad_grammar_is_refused_though_there_is_no_room_and_leaves_nothing(engine):
    engine.worker.bad.add("a{1000}")
    for number in range(MOST):
        engine.add(str(number), number)
    engine.add("first", 1000)
    engine.add("second", 1000)
    engine.worker.work(MOST + 1)
    assert [(refused.id, refused.code) for refused in engine.service.collect()] == [
        ("first", "invalid_schema"),
        ("second", "invalid_schema"),
    ]
    with pytest.raises(RequestError, match="no such rule"):
        engine.add("third", 1000)
    assert "third" not in engine.scheduler.roster.alive
    engine.core.abort([str(number) for number in range(MOST)])
    engine.assert_idle()


@pytest.mark.parametrize("seed", range(6))
def test_whatever_comes_and_goes_all_are_served_within_the_bound(seed):
    rng = Random(seed)
    engine = Engine(rng.choice(["fcfs", "priority", "lpm"]))
    forms, open_ids = rng.choice([MOST, 3 * MOST]), []
    for number in range(400):
        engine.worker.work(rng.randrange(2))  # what was done shows only when it is collected
        engine.add(str(number), rng.randrange(forms), rng.randrange(3))
        open_ids.append(str(number))
        if rng.random() < 0.1:
            engine.core.abort([open_ids.pop(rng.randrange(len(open_ids)))])
        if rng.random() < 0.3:
            engine.turn(jobs=rng.randrange(6), complete=rng.random() < 0.5)
        if rng.random() < 0.02:
            engine.service.wait_for_all()
    turns = 0
    while engine.scheduler.has_work:
        engine.turn(jobs=rng.randrange(6), complete=rng.random() < 0.5)
        turns += 1
        assert turns < 4000, "somebody waits for ever"
    engine.assert_idle()


def test_nothing_is_compiled_for_a_request_that_can_never_fit(engine) -> None:
    params = SamplingParams(structured_outputs=StructuredOutputsParams(regex="a+"))
    with pytest.raises(RequestError, match="context length"):
        engine.core.add(Request(id="long", token_ids=[1] * 100, params=params))
    assert not engine.service.busy and not engine.worker.todo
