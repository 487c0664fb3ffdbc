"""The load of the peer's rows over HTTP is drawn as its own script draws it."""

from itertools import islice

import pytest

from benchmarks.lib.peer_load import PROCESSES, PeerLoad, drawn

pytestmark = pytest.mark.plain


def load(**how: float | int) -> PeerLoad:
    return PeerLoad(url="", model="", requests=256, prompt=512, output=128, **how)  # type: ignore[arg-type]


def test_lengths_are_those_of_the_peers_script() -> None:
    lengths = [sum(len(ids) for _, ids in drawn(load(), process)) for process in range(PROCESSES)]
    assert lengths == [32108, 31120, 32702, 32753]


def test_rows_at_a_rate_begin_with_the_same_prompts_at_other_moments() -> None:
    slow, fast = (list(islice(drawn(load(rate=rate), 1), 5)) for rate in (8, 16))
    assert [ids for _, ids in slow] == [ids for _, ids in fast]
    assert [gap for gap, _ in slow] == pytest.approx([2 * gap for gap, _ in fast])
    assert slow != list(islice(drawn(load(rate=8, seed=1), 1), 5))
