"""Short plays of scarce pages: who is let in, who waits, and who must give way."""

import pytest

from quire.base.errors import RequestError
from quire.messages.state import Retention
from tests.scheduler.engine import Engine, check_all, layout_of

pytestmark = pytest.mark.plain


def test_the_youngest_is_preempted_and_comes_back():
    engine = Engine(layout_of([Retention()], pages=6, page_size=4), prefix_caching=False)
    engine.add(prompt=7, max_tokens=8)
    engine.add(prompt=7, max_tokens=8)
    # Five usable pages: A and B hold two each; at nine tokens each wants a third and only one is left.
    assert [engine.step() for _ in range(3)] == ["A7 B7", "A1 B1", "A1"]
    assert engine.scheduler.counters.preemptions == 1
    assert [seq.id for seq in engine.scheduler.roster.waiting] == ["B"]
    check_all(engine)


def test_a_victim_that_plans_hold_is_preempted_when_they_are_in():
    engine = Engine(layout_of([Retention()], pages=6, page_size=4), prefix_caching=False, depth=2)
    engine.add(prompt=7, max_tokens=8)
    engine.add(prompt=7, max_tokens=8)
    assert [engine.step() for _ in range(4)] == ["A7 B7", "A1 B1", "A1", "A1"]
    engine.step()
    assert engine.scheduler.counters.preemptions == 1
    check_all(engine)


def test_a_victim_stops_at_once_and_not_only_at_its_next_page():
    engine = Engine(layout_of([Retention()], pages=5, page_size=8), prefix_caching=False, depth=2)
    engine.add(prompt=15, max_tokens=6)
    engine.add(prompt=9, max_tokens=6)
    # A wants a third page. B has room for five more tokens, but is held back to be preempted.
    assert [engine.step() for _ in range(5)] == ["A15 B1", "A1 B8", "", "A1", "A1"]
    check_all(engine)


def test_priority_preempts_the_least_important():
    engine = Engine(layout_of([Retention()], pages=6, page_size=4), prefix_caching=False, policy="priority")
    engine.add(prompt=7, max_tokens=8, priority=5)
    engine.add(prompt=7, max_tokens=8, priority=1)
    assert [engine.step() for _ in range(3)] == ["B7 A7", "B1 A1", "B1"]
    check_all(engine)


@pytest.mark.parametrize(("prompt", "max_tokens", "page_size"), [(1, 10, 1), (1, 14, 2), (4, 6, 1), (4, 10, 2)])
def test_pinned_sequences_do_not_wait_for_each_other(prompt, max_tokens, page_size):
    layout = layout_of([Retention()], pages=12, page_size=page_size)
    engine = Engine(layout, prefix_caching=False, max_preemptions=1)
    for _ in range(3):
        engine.add(prompt=prompt, max_tokens=max_tokens)
    check_all(engine)
    assert engine.scheduler.counters.preemptions >= 2


def test_longest_prefix_is_served_first_until_someone_is_overdue():
    engine = Engine(layout_of([Retention()], page_size=4), policy="lpm", max_num_seqs=1)
    shared = list(range(8))
    engine.add([*shared, 30], max_tokens=1)
    assert engine.step() == "A9"
    engine.add(prompt=5, max_tokens=1)
    engine.add([*shared, 31], max_tokens=1)
    assert engine.step() == "C1"
    engine.add([*shared, 32], max_tokens=1)
    engine.clock += 10
    assert engine.step() == "B5"
    check_all(engine)


def test_admission_wants_room_for_all_of_it_but_looks_past_a_blocked_head():
    engine = Engine(layout_of([Retention()], pages=9, page_size=4), prefix_caching=False, max_num_batched_tokens=40)
    engine.add(prompt=16, max_tokens=4)
    engine.add(prompt=20, max_tokens=4)
    engine.add(prompt=4, max_tokens=1)
    assert engine.step() == "A16 C4"
    check_all(engine)


def test_admission_counts_cached_pages_that_it_would_use_as_taken():
    engine = Engine(layout_of([Retention()], pages=6, page_size=4))
    shared = list(range(12))
    engine.add([*shared, 40], max_tokens=1)
    engine.finish_all()
    engine.add(prompt=3, max_tokens=5)
    assert engine.step() == "B3"
    engine.add([*shared, *range(20, 27)], max_tokens=1)
    assert engine.step() == "B1"
    check_all(engine)


def test_a_blocked_head_is_not_passed_for_ever():
    engine = Engine(layout_of([Retention()], pages=9, page_size=4), prefix_caching=False, max_skipped=2)
    engine.add(prompt=16, max_tokens=16)
    engine.step()
    engine.add(prompt=20, max_tokens=4)
    for _ in range(3):
        engine.add(prompt=1, max_tokens=1)
    assert engine.step() == "A1 C1 D1"
    assert engine.step() == "A1"
    check_all(engine)


def test_the_watermark_is_kept_beside_others_and_waived_alone():
    engine = Engine(layout_of([Retention()], pages=6, page_size=4), watermark=0.4, prefix_caching=False)
    engine.add(prompt=15, max_tokens=3)
    engine.add(prompt=3, max_tokens=1)
    assert engine.step() == "A15"
    check_all(engine)


def test_what_can_never_fit_is_refused():
    engine = Engine(layout_of([Retention()], pages=5, page_size=4, max_model_len=30))
    with pytest.raises(RequestError, match="30 tokens") as refusal:
        engine.add(prompt=30)
    assert refusal.value.code == "context_length_exceeded"
    with pytest.raises(RequestError, match="memory for pages") as refusal:
        engine.add(prompt=10, max_tokens=7)
    assert refusal.value.code == "kv_capacity"
    assert not engine.scheduler.has_work
    engine.add(prompt=10, max_tokens=6)
    check_all(engine)


def test_a_window_frees_pages_that_are_no_longer_needed():
    engine = Engine(layout_of([Retention(window=6)], pages=20, page_size=2), prefix_caching=False)
    engine.add(prompt=12, max_tokens=20)
    most = 0
    engine.step()
    while engine.step():
        most = max(most, sum(map(bool, engine.scheduler.roster.pages.groups[0].pool.references)))
    assert most == 4  # five past tokens lie on at most three pages, and one page is being filled
    check_all(engine)


def test_pages_and_row_of_an_ended_sequence_wait_for_the_last_plan():
    engine = Engine(depth=2)
    engine.add(prompt=5, max_tokens=9)
    engine.step()
    engine.step()
    engine.scheduler.abort("A")
    engine.silent.add(("A", 0))
    roster = engine.scheduler.roster
    assert roster.leaving and roster.pages.usage() > 0 and len(roster.rows.free) == 7
    engine.settle()
    assert not roster.leaving and roster.pages.usage() == 0 and len(roster.rows.free) == 8
    engine.add(prompt=5, max_tokens=2)
    assert engine.step() == "B5"
    check_all(engine)
