"""Short plays of faults: whom a failed row takes with it, and who starts again without the pages that it spoiled."""

import pytest

from quire.messages.state import Retention
from tests.scheduler.engine import Engine, check_all, layout_of

pytestmark = pytest.mark.plain


def test_a_failed_row_ends_alone_and_those_who_share_its_page_start_again():
    engine = Engine(layout_of([Retention()], page_size=4), depth=2)
    prefix = list(range(8))
    engine.add([*prefix, 40], max_tokens=4)
    engine.poisoned.add("A")
    engine.add([*prefix, 41], max_tokens=4)
    assert engine.step() == "A9"
    assert engine.step() == "A1 B1"  # B shares pages that are about to turn out bad
    assert engine.heard["A", 0].finish_reason == "error"
    assert engine.scheduler.counters.restarted == 1
    assert not engine.scheduler.roster.pages.groups[0].index.pages
    engine.finish_all()
    engine.check_said(("B", 0))
    assert engine.heard["B", 0].finish_reason == "length"


def test_a_fault_spreads_to_those_who_share_with_those_who_share():
    engine = Engine(layout_of([Retention()], page_size=4), depth=2, max_num_batched_tokens=8)
    prefix = [1, 2, 3, 4]
    engine.add([*prefix, *range(10, 26)], max_tokens=2)
    engine.poisoned.add("A")
    engine.add([*prefix, *range(30, 38)], max_tokens=2)
    engine.add([*prefix, *range(30, 34), 9], max_tokens=2)
    assert [engine.step() for _ in range(4)] == ["A8", "A8", "A4 B4", "A1 B4 C1"]
    assert engine.heard["A", 0].finish_reason == "error"
    assert engine.scheduler.counters.restarted == 2
    engine.finish_all()
    for key in (("B", 0), ("C", 0)):
        engine.check_said(key)
        assert engine.heard[key].finish_reason == "length"


def test_what_a_preempted_sequence_spoiled_is_not_found_by_itself_again():
    engine = Engine(layout_of([Retention()], pages=6, page_size=4), max_num_batched_tokens=8)
    engine.add(prompt=7, max_tokens=4)
    engine.add(prompt=12, max_tokens=2)
    assert engine.step() == "A7 B1"
    engine.poisoned.add("B")
    assert [engine.step() for _ in range(2)] == ["A1 B7", "A1"]
    assert engine.scheduler.counters.preemptions == 1
    check_all(engine)
    assert engine.heard["B", 0].finish_reason == "length"


def test_a_sample_confirms_no_page_that_a_later_plan_fills():
    engine = Engine(layout_of([Retention()], page_size=4), depth=2)
    engine.add([1, 2, 3], max_tokens=6)
    first = engine.solo(("A", 0)).tokens[0]
    assert engine.step() == "A3"
    engine.poisoned.add("A")
    assert engine.step() == "A1"
    engine.add([1, 2, 3, first, 9], max_tokens=3)
    assert engine.step() == "A1 B1"
    assert engine.heard["A", 0].finish_reason == "error"
    check_all(engine)
    assert engine.heard["B", 0].finish_reason == "length"


def test_a_fault_that_nobody_answers_for_ends_one_and_spares_the_next():
    engine = Engine(layout_of([Retention()], page_size=4), max_num_batched_tokens=8)
    prefix = [1, 2, 3, 4]
    engine.add([*prefix, *range(10, 26)])
    engine.poisoned.add("A")
    assert engine.step() == "A8"
    engine.scheduler.abort("A")
    engine.silent.add(("A", 0))
    engine.add([*prefix, 8], max_tokens=2)
    engine.add([*prefix, *range(30, 46)], max_tokens=2)
    assert engine.step() == "B1 C7"
    assert engine.heard["B", 0].finish_reason == "error"
    check_all(engine)
    assert engine.heard["C", 0].finish_reason == "length"


def test_settings_that_fail_on_the_rank_end_with_their_sentence():
    engine = Engine()
    engine.add(prompt=5)
    plan = engine.scheduler.plan(0.0)
    result = engine.device.run(plan, {})
    result.errors[plan.grants[0].row] = "logits processor 0 raised ValueError"
    (delta,) = engine.scheduler.commit(result)
    assert (delta.finish_reason, delta.error) == ("error", "logits processor 0 raised ValueError")
    engine.scheduler.check()
    assert not engine.scheduler.has_work


def test_unknown_ids_and_steps_change_nothing_but_a_counter():
    engine = Engine()
    engine.add(prompt=5, max_tokens=1)
    plan = engine.scheduler.plan(0.0)
    result = engine.device.run(plan, {})
    engine.scheduler.abort("nobody")
    assert engine.scheduler.finish("nobody", 0, 1) is False
    assert len(engine.scheduler.commit(result)) == 1
    assert engine.scheduler.commit(result) == []
    engine.scheduler.abort("A")
    assert engine.scheduler.counters.ignored == 4
    assert engine.scheduler.counters.finished == 1
    engine.scheduler.check()
