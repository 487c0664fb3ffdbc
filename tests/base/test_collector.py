"""The collector of cycles is held for a while and comes back."""

import gc

import pytest

from quire.base.collector import collector_paused

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
