"""Who begins alike: the tree against looking at all tables, through random lives."""

from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from quire.kvcache.shared import SharedPrefixes

pytestmark = pytest.mark.plain


def most_saved(tables, least_owners, least_pages, depth=0):
    """Pages saved by the best cut of tables that are alike up to `depth`, found by looking at all of them."""
    if len(tables) < least_owners:
        return 0
    own = (len(tables) - 1) * depth if depth >= least_pages else 0
    going_on = [table for table in tables if len(table) > depth]
    parts = [[t for t in going_on if t[depth] == page] for page in {t[depth] for t in going_on}]
    return max(own, sum(most_saved(part, least_owners, least_pages, depth + 1) for part in parts))


class Machine(RuleBasedStateMachine):
    """Owners come with the beginning of somebody's table, grow by pages of their own or of others, and leave."""

    @initialize(owners=st.integers(2, 4), pages=st.integers(1, 4))
    def begin(self, owners, pages):
        self.least = owners, pages
        self.tree = SharedPrefixes(owners, pages)
        self.tables = {}
        self.names, self.pages = count(), count(1)
        self.known = []

    @rule(data=st.data(), fresh=st.integers(0, 3))
    def enter(self, data, fresh):
        others = [[], *self.tables.values()]
        chosen = data.draw(st.sampled_from(others))
        shared = chosen[: data.draw(st.integers(0, len(chosen)))]
        table = [*shared, *(next(self.pages) for _ in range(fresh))]
        name = next(self.names)
        self.tree.enter(name, list(table))
        self.tables[name] = table

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), fresh=st.integers(1, 3))
    def extend(self, data, fresh):
        name = data.draw(st.sampled_from(list(self.tables)))
        pages = [next(self.pages) for _ in range(fresh)]
        self.tree.extend(name, pages)
        self.tables[name] += pages

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def extend_as_another_did(self, data):
        name, other = (data.draw(st.sampled_from(list(self.tables))) for _ in range(2))
        mine, theirs = self.tables[name], self.tables[other]
        if theirs[: len(mine)] == mine and len(theirs) > len(mine):
            self.tree.extend(name, theirs[len(mine) :])
            self.tables[name] = list(theirs)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def leave(self, data):
        name = data.draw(st.sampled_from(list(self.tables)))
        del self.tables[name]
        self.tree.leave(name)

    @invariant()
    def holds(self):
        if not hasattr(self, "tree"):
            return
        changed = self.tree.changed
        found = sorted(self.tree.sharers())  # a run that is cut may come later; nobody reads the order
        assert changed or found == self.known, "changed without saying so"
        self.known = found
        owners = [owner for group in found for owner in group.owners]
        assert len(set(owners)) == len(owners), "an owner is in two groups"
        for pages, group in found:
            assert len(group) >= self.least[0] and pages >= self.least[1]
            assert len({tuple(self.tables[owner][:pages]) for owner in group}) == 1, "they do not begin alike"
            assert all(len(self.tables[owner]) >= pages for owner in group)
        saved = sum(pages * (len(group) - 1) for pages, group in found)
        assert saved == most_saved(list(self.tables.values()), *self.least)


TestSharedPrefixes = Machine.TestCase
TestSharedPrefixes.settings = settings(max_examples=150, stateful_step_count=30)


def tree_of(*tables, owners=2, pages=1):
    tree = SharedPrefixes(owners, pages)
    for name, table in enumerate(tables):
        tree.enter(name, table)
    return tree


def test_nobody_shares_with_nobody():
    tree = tree_of([1, 2], [3, 4], [])
    assert not tree.changed
    assert tree.sharers() == []


def test_a_group_is_cut_where_its_parts_share_more():
    few = [[1, 2, *([n] * 9), n + 100 + i] for n in (5, 6) for i in range(3)]
    assert tree_of(*few).sharers() == [(11, [0, 1, 2]), (11, [3, 4, 5])]
    assert tree_of(*([1, 2, 3, 4, 5 + i % 2] for i in range(6))).sharers() == [(4, [0, 1, 2, 3, 4, 5])]


def test_growth_that_nobody_shares_changes_nothing():
    tree = tree_of([1, 2], [1, 2], [1, 2])
    assert tree.changed
    assert tree.sharers() == [(2, [0, 1, 2])]
    tree.extend(1, [7])
    tree.extend(1, [8])
    tree.enter(4, [9])
    tree.leave(4)
    assert not tree.changed


def test_a_thousand_forks_of_one_long_table():
    table = list(range(1, 2001))
    tree = tree_of(*([*table[: 2 * i + 1], 5000 + i] for i in range(1000)))
    ((pages, owners),) = tree.sharers()
    assert pages * (len(owners) - 1) == max((2 * i + 1) * (999 - i) for i in range(1000))
