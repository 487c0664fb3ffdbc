"""The collector of cycles is held for a while and comes back."""

import gc
import weakref

import pytest

from quire.base.collector import MOST_YOUNG, collector_paused, what_lives_spared

pytestmark = [pytest.mark.plain, pytest.mark.usefixtures("thawed")]


@pytest.mark.parametrize("running", [True, False])
def test_it_is_held_and_left_as_it_was(running: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if running else gc.disable)()
        with pytest.raises(KeyError), collector_paused():
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() is running
        assert collector_paused()(gc.isenabled)() is False
        assert gc.isenabled() is running
    finally:
        (gc.enable if before else gc.disable)()


class Cycle:
    """Is garbage that only the collector finds, as soon as nobody else holds it."""

    def __init__(self) -> None:
        self.itself = self


def test_what_lived_before_is_not_looked_at() -> None:
    older, younger, often = Cycle(), None, gc.get_threshold()
    with pytest.raises(KeyError), what_lives_spared():
        assert gc.get_threshold()[0] >= MOST_YOUNG
        younger = Cycle()
        looked_at = {id(one) for one in gc.get_objects()}
        assert id(younger) in looked_at and id(older) not in looked_at
        raise KeyError
    assert gc.get_freeze_count() == 0
    assert gc.get_threshold() == often


def test_garbage_is_found_afterwards_also_where_a_caller_has_frozen_what_he_needs() -> None:
    gc.freeze()
    try:
        before, dead = gc.get_freeze_count(), Cycle()
        gone = weakref.ref(dead)
        del dead
        with what_lives_spared():
            pass
        assert gc.get_freeze_count() == before
        gc.collect()
        assert gone() is None
    finally:
        gc.unfreeze()
