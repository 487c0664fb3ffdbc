"""The collector of cycles is held for a while and comes back."""

import gc

import pytest

from quire.base.collector import collector_paused, what_lives_spared

pytestmark = pytest.mark.plain


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


@pytest.mark.parametrize("frozen_before", [True, False])
def test_what_lived_before_is_not_looked_at(frozen_before: bool) -> None:
    older: list[object] = []
    older.append(older)
    try:
        if frozen_before:
            gc.freeze()
        with pytest.raises(KeyError), what_lives_spared():
            younger: list[object] = []
            looked_at = {id(one) for one in gc.get_objects()}
            assert id(younger) in looked_at and id(older) not in looked_at
            raise KeyError
        assert bool(gc.get_freeze_count()) is frozen_before
    finally:
        gc.unfreeze()
