"""Pages and the index over them: what is lost first, what is found again, what is kept apart."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from quire.kvcache.group import CacheGroup
from quire.kvcache.prefix import HashChain
from quire.messages.state import GroupLayout, StateSpec

pytestmark = pytest.mark.plain

PAGES = 9


def group(pages=PAGES, page_size=2):
    """A group with full attention."""
    return CacheGroup(GroupLayout(StateSpec(1), 1, page_size, pages))


def chain(tokens, *, key=b"key", salt=b"", page_size=2):
    """Keys of the full pages of some tokens."""
    return HashChain(key, salt, page_size).extend(tokens)


def test_page_0_is_never_given_out():
    cache = group()
    assert sorted(cache.take(PAGES - 1)) == list(range(1, PAGES))
    assert cache.pool.available == 0


def test_the_oldest_release_is_lost_first_and_leaves_before_parents():
    cache = group(pages=5)
    keys = chain([1, 2, 3, 4, 5, 6, 7, 8])
    first, second = cache.take(2), cache.take(2)
    for key, page in zip(keys, first + second, strict=True):
        assert cache.index.add(key, page)
    cache.release(reversed(first))
    cache.release(reversed(second))
    assert [cache.take(1)[0] for _ in range(4)] == [first[1], first[0], second[1], second[0]]
    assert not cache.index.pages


def test_blank_pages_go_before_cached_ones():
    cache = group(pages=4)
    kept, blank = cache.take(2)
    cache.index.add(b"key", kept)
    cache.release([kept])
    cache.release([blank])
    assert set(cache.take(2)) == {3, blank}
    assert cache.index.pages == {b"key": kept}


def test_a_hit_takes_a_page_off_the_list_and_its_release_makes_it_young():
    cache = group(pages=3)
    old, young = cache.take(2)
    cache.index.add(b"old", old)
    cache.index.add(b"young", young)
    cache.release([old])
    cache.release([young])
    cache.share([0, old])
    assert cache.pool.available == 1
    cache.release([old])
    assert cache.take(1) == [young]


def test_the_first_page_with_a_key_stays():
    cache = group()
    one, two = cache.take(2)
    assert cache.index.add(b"key", one)
    assert not cache.index.add(b"key", two)
    cache.release([two])
    assert two in cache.pool.blank


def test_withdrawn_pages_are_not_found_and_not_kept():
    cache = group()
    held, free = cache.take(2)
    cache.index.add(b"held", held)
    cache.index.add(b"free", free)
    cache.release([free])
    cache.withdraw([held, free, 5])
    assert not cache.index.pages and free in cache.pool.blank
    cache.release([held])
    assert held in cache.pool.blank


def test_reset_forgets_only_what_nobody_uses():
    cache = group()
    held, free = cache.take(2)
    cache.index.add(b"held", held)
    cache.index.add(b"free", free)
    cache.release([free])
    cache.reset()
    assert cache.index.pages == {b"held": held}


def test_keys_stand_for_everything_before_them():
    tokens = [1, 2, 3, 4, 5]
    keys = chain(tokens)
    assert len(keys) == 2
    assert chain([1, 2, 9, 4])[0] == keys[0] and chain([1, 2, 9, 4])[1] != keys[1]
    assert chain([9, 2, 3, 4])[1] != keys[1]
    assert not {*keys} & {*chain(tokens, salt=b"tenant")}
    assert not {*keys} & {*chain(tokens, key=b"other process")}
    assert chain([1, 2] * 2)[0] != chain([1, 2] * 2)[1]


def test_a_chain_grows_with_its_tokens():
    growing = HashChain(b"key", b"", 2)
    for n in range(6):
        assert growing.extend(list(range(n))) == chain(list(range(n)))


class PoolMachine(RuleBasedStateMachine):
    """Owners take, share, register and release pages at random."""

    def __init__(self):
        super().__init__()
        self.cache = group()
        self.owners: list[list[int]] = []
        self.serial = 0

    @rule(count=st.integers(1, 3))
    def take(self, count):
        """A new owner."""
        if self.cache.pool.available >= count:
            pages = self.cache.take(count)
            assert len(set(pages)) == count
            self.owners.append(pages)

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def register(self, data):
        """A page becomes findable."""
        page = data.draw(st.sampled_from(data.draw(st.sampled_from(self.owners))))
        if page not in self.cache.index:
            self.serial += 1
            self.cache.index.add(str(self.serial).encode(), page)

    @precondition(lambda self: self.cache.index.hashes)
    @rule(data=st.data())
    def share(self, data):
        """Somebody finds a page."""
        page = data.draw(st.sampled_from(sorted(self.cache.index.hashes)))
        self.cache.share([page])
        self.owners.append([page])

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def release(self, data):
        """An owner leaves."""
        owner = data.draw(st.sampled_from(range(len(self.owners))))
        self.cache.release(reversed(self.owners.pop(owner)))

    @rule(page=st.integers(1, PAGES - 1))
    def withdraw(self, page):
        """A page turns out to be bad."""
        self.cache.withdraw([page])

    def teardown(self):
        """Nothing is lost."""
        for owner in self.owners:
            self.cache.release(owner)
        self.cache.check([])
        assert self.cache.pool.available == PAGES - 1

    @invariant()
    def agrees(self):
        """Pool, index and owners."""
        self.cache.pool.check(page for owner in self.owners for page in owner)
        assert all(page in self.cache.index for page in self.cache.pool.cached)
        assert not any(page in self.cache.index for page in self.cache.pool.blank)


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=30)
