"""What is always true between two calls of the scheduler, as assertions.

Run after every step in tests and on idle in production; nothing here changes anything.
"""

from collections import Counter

from quire.scheduler.pending_plan import PendingPlan
from quire.scheduler.roster import Roster
from quire.scheduler.sequence import Sequence, State


def check(roster: Roster, flights: list[PendingPlan]) -> None:
    """Assert all of it. Raises AssertionError with what is wrong."""
    _check_places(roster)
    _check_rows(roster)
    _check_pages(roster)
    _check_shared(roster)
    _check_flights(roster, flights)
    for seq in (*roster.running, *roster.leaving):
        _check_counters(seq)
    if not roster.alive and not flights:
        _check_idle(roster)


def _check_places(roster: Roster) -> None:
    """Each sequence that is alive is in exactly one place, and that place fits its state."""
    followers = [follower for seq in (*roster.waiting, *roster.running, *roster.leaving) for follower in seq.followers]
    returning = [seq for seq in roster.leaving if seq.state is State.RETURNING]
    places = [*roster.waiting, *roster.running, *followers, *returning]
    alive = [seq for sequences in roster.alive.values() for seq in sequences]
    assert Counter(places) == Counter(alive), "a sequence is nowhere, or in two places"
    assert len(alive) == roster.counters.alive, "sequences ended or added without being counted"
    users = Counter(seq for users in roster.grammars.users.values() for seq in users)
    assert users == Counter(seq for seq in alive if seq.grammar is not None), "users of grammars are miscounted"
    assert all(seq.state is State.WAITING for seq in roster.waiting)
    assert all(seq.state is State.RUNNING for seq in roster.running)
    assert all(seq.state is State.FOLLOWING for seq in followers)
    assert all(seq.state in (State.LEAVING, State.RETURNING) and seq.in_flight for seq in roster.leaving)
    for queue, rank in ((roster.waiting.items, roster.order.rank), (roster.running.items, roster.seniority)):
        assert queue == sorted(queue, key=rank), "a queue is out of order"


def _check_rows(roster: Roster) -> None:
    held = [seq.row for seq in (*roster.running, *roster.leaving)]
    assert sorted([*held, *roster.rows.free]) == list(range(roster.rows.count)), "a row is lost or held twice"
    assert all(seq.row < 0 for seq in roster.waiting)


def _check_pages(roster: Roster) -> None:
    """References, hashes and retention agree with the tables of those who hold pages."""
    holders = roster.pages.holders
    assert holders == {*roster.running, *roster.leaving}, "pages are held by a sequence that does not run"
    for number, group in enumerate(roster.pages.groups):
        group.check(seq.tables[number] for seq in holders)
    for seq in roster.waiting:
        assert not any(table.pages for table in seq.tables)
    for seq in roster.running:
        for group, table in zip(roster.pages.groups, seq.tables, strict=True):
            assert table.room >= seq.computed, "tokens were computed without a page"
            page = table.pages[seq.computed // table.page_size] if seq.computed < table.room else 0
            assert not page or (group.pool.references[page] == 1 and page not in group.index), (
                "a shared page is written"
            )


def _check_shared(roster: Roster) -> None:
    """Ranks are told of exactly those who begin alike."""
    pages = roster.pages
    for number, tree in enumerate(pages.trees):
        if tree is None or tree.changed:
            continue  # what has changed is told with the next plan
        for pages_shared, owners in tree.sharers():
            assert all(seq in pages.holders for seq in owners), "a sequence that has left is said to share pages"
            tables = {tuple(seq.tables[number].pages[:pages_shared]) for seq in owners}
            assert len(tables) == 1 and 0 not in next(iter(tables)), "sequences do not begin alike"


def _check_flights(roster: Roster, flights: list[PendingPlan]) -> None:
    held = Counter(seq for flight in flights for seq in (*flight.chunks, *flight.sampling, *flight.pooled))
    expected = Counter(seq for flight in flights for seq in flight.sampling)
    for seq in (*roster.waiting, *roster.running, *roster.leaving):
        assert seq.in_flight == held.pop(seq, 0), "plans in flight are miscounted"
        assert seq.expected == expected[seq], "samples in flight are miscounted"
    assert not held, "a plan in flight holds a sequence that has left"


def _check_counters(seq: Sequence) -> None:
    assert 0 <= seq.computed <= len(seq.tokens) + seq.expected, "more tokens computed than there are"
    assert len(seq.tokens) <= seq.max_len, "longer than it may become"
    if seq.state is State.RUNNING:
        assert len(seq.tokens) + seq.expected <= seq.max_len, "a sample in flight is beyond the end"
        assert not seq.steady_until or seq.pending == 1, "steady, but not one token behind"


def _check_idle(roster: Roster) -> None:
    assert not roster.waiting and not roster.running and not roster.leaving
    assert roster.pages.usage() == 0, "pages are in use at idle"
    assert len(roster.rows.free) == roster.rows.count
