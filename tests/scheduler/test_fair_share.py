"""Plays of several owners: whose turn it is."""

import pytest

from quire.scheduler import fair_share
from tests.scheduler.engine import Engine, check_all

pytestmark = pytest.mark.plain


def test_owners_that_wait_are_served_in_turns():
    engine = Engine(max_num_seqs=1)
    for _ in range(3):
        engine.add(prompt=4, max_tokens=1, owner="flood")
    engine.add(prompt=4, max_tokens=1, owner="one")
    # D came last, but its owner has had nothing yet.
    assert [engine.step() for _ in range(4)] == ["A4", "D4", "B4", "C4"]
    check_all(engine)


def test_an_owner_who_was_away_has_saved_nothing_up():
    engine = Engine(max_num_seqs=1)
    for _ in range(4):
        engine.add(prompt=4, max_tokens=1, owner="a")
    assert [engine.step() for _ in range(2)] == ["A4", "B4"]
    for _ in range(2):
        engine.add(prompt=4, max_tokens=1, owner="b")
    # From now on they take turns; b does not get the two that a had before it came.
    assert [engine.step() for _ in range(4)] == ["E4", "C4", "F4", "D4"]
    check_all(engine)


def test_a_longer_request_costs_its_owner_more():
    engine = Engine(max_num_seqs=1)
    engine.add(prompt=4, max_tokens=1, owner="c")
    engine.add(prompt=14, max_tokens=1, owner="a")
    for _ in range(3):
        engine.add(prompt=4, max_tokens=1, owner="b")
    engine.add(prompt=4, max_tokens=1, owner="a")
    assert "".join(engine.step()[0] for _ in range(6)) == "ABCDEF"
    check_all(engine)


def test_owners_are_forgotten_that_owe_nothing(monkeypatch):
    monkeypatch.setattr(fair_share, "MOST_OWNERS", 8)
    clock = fair_share.FairShare()
    for n in range(100):
        clock.serve(clock.take(f"owner {n}", 1) + 1)
    assert len(clock._ends) <= 9
