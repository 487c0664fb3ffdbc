"""The longest prefix hit against brute force, and the retention rules in pages."""

from math import lcm

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.kvcache.hits import GroupHits, longest_hit
from quire.kvcache.retention import first_page, most_held, needed_pages, sink_pages
from quire.kvcache.table import PageTable
from quire.messages.state import Retention

pytestmark = pytest.mark.plain

rules = st.one_of(
    st.just(Retention()),
    st.builds(Retention, window=st.integers(2, 12), sink=st.integers(0, 5)),
    st.builds(Retention, chunk=st.integers(1, 12), sink=st.integers(0, 5)),
)
groups = st.lists(
    st.builds(GroupHits, rules, st.integers(1, 6), st.lists(st.sampled_from([True] * 4 + [False]), max_size=24)),
    min_size=1,
    max_size=3,
)


def needed_tokens(rule, tokens):
    """Straight from the definition."""
    return {*range(min(rule.sink, tokens)), *range(rule.first_needed(tokens), tokens)}


def is_hit(group, tokens):
    """Whether one group has every page that it needs after `tokens` tokens."""
    pages = {token // group.page_size for token in needed_tokens(group.rule, tokens)}
    return all(page < len(group.cached) and group.cached[page] for page in pages)


@settings(max_examples=600)
@given(groups, st.integers(0, 60))
def test_longest_hit_is_what_brute_force_finds(groups, limit):
    step = lcm(*(group.page_size for group in groups))
    brute = [n for n in range(step, limit + 1, step) if all(is_hit(group, n) for group in groups)]
    assert longest_hit(groups, limit) == max(brute, default=0)


@settings(max_examples=300)
@given(rules, st.integers(0, 15), st.integers(1, 7))
def test_needed_pages_are_those_of_the_needed_tokens(rule, pages, size):
    tokens = pages * size
    assert needed_pages(rule, tokens, size) == sorted({token // size for token in needed_tokens(rule, tokens)})


@settings(max_examples=300)
@given(rules, st.integers(1, 60), st.integers(1, 7))
def test_a_sequence_that_advances_token_by_token_holds_most_held_pages(rule, tokens, size):
    table, most = PageTable(rule, size), 0
    for computed in range(tokens):
        if computed == table.room:
            table.trim(computed)
            table.pages.append(computed + 1)
        held = {i for i, page in enumerate(table.pages) if page}
        assert {token // size for token in needed_tokens(rule, computed)} <= held
        most = max(most, len(held))
    assert most <= most_held(rule, tokens, size)


def test_most_held_is_not_more_than_a_bad_alignment_needs():
    assert most_held(Retention(), 17, 4) == 5
    assert most_held(Retention(window=6), 100, 2) == 4
    assert most_held(Retention(window=6), 4, 2) == 2
    assert most_held(Retention(chunk=6), 100, 4) == 3
    assert most_held(Retention(window=2, sink=3), 100, 1) == 5


def test_trim_keeps_sinks_and_returns_pages_last_first():
    table = PageTable(Retention(window=5, sink=3), 2)
    table.pages = [11, 12, 13, 14, 15, 16]
    assert table.trim(11) == [13]
    assert table.pages == [11, 12, 0, 14, 15, 16]
    assert table.trim(11) == []
    assert table.trim(15) == [15, 14]
    assert table.clear() == [16, 12, 11]
    assert (sink_pages(table.rule, 1, 2), first_page(table.rule, 15, 2)) == (1, 5)
    assert table.room == 0
