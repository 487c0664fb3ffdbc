"""Short plays of requests that begin alike: who finds whose pages, and what ranks are told of it."""

import pytest

from quire.messages.state import Retention
from tests.scheduler.engine import Engine, check_all, layout_of

pytestmark = pytest.mark.plain


def test_a_shared_prefix_is_computed_once():
    engine = Engine(layout_of([Retention()], page_size=4))
    prefix = list(range(12))
    engine.add([*prefix, 40], max_tokens=2)
    engine.add([*prefix, 41], max_tokens=2)
    # B waits one step for the pages that A fills, and then computes only its own token.
    assert [engine.step() for _ in range(3)] == ["A13", "A1 B1", "B1"]
    assert engine.scheduler.stats().prefix_hits == 12
    check_all(engine)


def test_a_hit_never_covers_the_last_prompt_token():
    engine = Engine(layout_of([Retention()], page_size=4))
    engine.add(list(range(8)), max_tokens=1)
    engine.add(list(range(8)), max_tokens=1)
    assert [engine.step() for _ in range(2)] == ["A8", "B4"]


def test_salts_and_a_switched_off_cache_share_nothing():
    for first, second, caching in (("x", "y", True), ("x", "x", False)):
        engine = Engine(prefix_caching=caching)
        engine.add(list(range(8)), max_tokens=1, cache_salt=first)
        engine.add(list(range(8)), max_tokens=1, cache_salt=second)
        assert engine.step() == "A8 B8"
        check_all(engine)


@pytest.mark.parametrize("caching", [True, False])
def test_siblings_follow_the_leader_and_recompute_one_page_tail(caching):
    engine = Engine(layout_of([Retention()], page_size=4), prefix_caching=caching)
    engine.add(list(range(10)), n=3, max_tokens=2)
    assert [engine.step() for _ in range(3)] == ["A10", "A1 A.1:2 A.2:2", "A.1:1 A.2:1"]
    check_all(engine)
    assert len({tuple(said.tokens) for said in engine.heard.values()}) > 1, "siblings must have noise of their own"


def test_siblings_start_when_the_leader_is_gone():
    engine = Engine(max_num_batched_tokens=4)
    engine.add(list(range(10)), n=2, max_tokens=2)
    assert engine.step() == "A4"
    engine.scheduler.finish("A", 0, 0)
    engine.silent.add(("A", 0))
    assert engine.step() == "A.1:4"
    check_all(engine)


def test_prompt_logprobs_read_no_prefix_and_come_with_the_first_token():
    engine = Engine(max_num_batched_tokens=8)
    engine.add(list(range(9)), max_tokens=1)
    engine.finish_all()
    engine.add(list(range(9)), n=2, max_tokens=2, prompt_logprobs=0, logprobs=0)
    assert [engine.step() for _ in range(2)] == ["B8", "B1 B.1:1"]
    check_all(engine)
    assert len(engine.heard["B", 0].prompt_logprobs) == 8
    assert engine.heard["B", 1].prompt_logprobs is None


def test_reset_forgets_what_nobody_uses():
    engine = Engine()
    engine.add(list(range(8)), max_tokens=1)
    engine.finish_all()
    engine.scheduler.reset_prefix_cache()
    engine.scheduler.check()
    engine.add(list(range(8)), max_tokens=1)
    assert engine.step() == "B8"


def shared_of(plan):
    """What a plan says of its first group: (rows, pages)."""
    return plan.shared and [(group.rows, group.pages) for group in plan.shared[0]]


def test_ranks_are_told_who_begins_alike_and_only_when_that_changes():
    engine = Engine(max_num_batched_tokens=40, shared_rows=3, shared_tokens=8)
    prefix = list(range(12))
    for own, tokens in ((40, 6), (41, 6), (42, 3), (43, 6)):
        engine.add([*prefix, own], max_tokens=tokens)
    plans = [engine.turn() for _ in range(6)]
    # The first computes the prefix, the others find it; the third leaves before the fifth plan.
    assert [shared_of(plan) for plan in plans] == [None, [([0, 1, 2, 3], 3)], None, None, [([0, 1, 3], 3)], None]
    engine.add([*prefix, 44], max_tokens=2)
    plan = engine.turn()
    assert plan.released == [0] and plan.new[0].row == 0
    assert plan.shared is None, "the same rows begin alike as before"
    check_all(engine)


def test_windows_are_never_shared():
    engine = Engine(layout_of([Retention(window=5), Retention(), Retention(chunk=8)]), shared_rows=2, shared_tokens=4)
    for own in (40, 41, 42):
        engine.add([*range(12), own])
    engine.turn()
    told = engine.turn().shared
    assert [[(group.rows, group.pages) for group in groups] for groups in told] == [[], [([0, 1, 2], 3)], []]
    check_all(engine)


def test_without_the_prefix_cache_only_siblings_begin_alike():
    engine = Engine(prefix_caching=False, shared_rows=2, shared_tokens=4)
    engine.add(list(range(12)), n=3)
    engine.add(list(range(12)))
    told = [plan.shared[0] for plan in [engine.turn() for _ in range(4)] if plan.shared]
    assert [(len(group.rows), group.pages) for groups in told for group in groups] == [(3, 2)]
    check_all(engine)


def test_who_is_preempted_shares_no_more_until_it_is_back():
    engine = Engine(layout_of([Retention()], pages=9), shared_rows=2, shared_tokens=4)
    for own in (40, 41, 42):
        engine.add([*range(8), own], max_tokens=16)
    seen = []
    while engine.scheduler.has_work:
        plan = engine.turn()
        seen += [groups for groups in [shared_of(plan)] if groups is not None] if plan else []
    assert engine.scheduler.counters.preemptions
    assert seen[0] == [([0, 1, 2], 2)] and ([0, 1], 2) in [group for groups in seen for group in groups]
    check_all(engine)
