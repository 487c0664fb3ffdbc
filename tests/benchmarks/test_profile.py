"""Whose time it is, where kernels overlap and where the device waits; and which turns are looked at."""

from types import SimpleNamespace

import pytest

from benchmarks.lib import profiling

pytestmark = pytest.mark.torch


def test_time_belongs_to_the_kernel_that_ends_it() -> None:
    steps = profiling.PROFILED_STEPS
    # "late" is launched early and waits for "first": it takes 20 of its 90 us. Then the device is idle for 100 us.
    step = [("first", 0, 80_000), ("late", 10_000, 100_000), ("void last", 200_000, 210_000)]
    events = [(name, start + i * 210_000, end + i * 210_000) for i in range(steps) for name, start, end in step]
    table = profiling._kernel_table(events, steps).splitlines()
    assert table[0] == "210.0 us a step, device busy 110.0 us, idle 48%, 3 launches"
    assert [line.split() for line in table[1:]] == [
        ["80.0", "us", "38.1%", "1.0", "x", "first"],
        ["20.0", "us", "9.5%", "1.0", "x", "late"],
        ["10.0", "us", "4.8%", "1.0", "x", "last"],
    ]


def test_a_profile_without_a_device_says_so() -> None:
    assert profiling._kernel_table([], 1) == "the profiler saw nothing on the device"


class Profile:
    """A profiler that notes when it is told something."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def start(self) -> None:
        self.log.append("start")

    def stop(self) -> None:
        self.log.append("stop")


def turns(monkeypatch: pytest.MonkeyPatch, log: list[str], tokens: list[int]) -> SimpleNamespace:
    """An engine whose turns produce so many tokens, one turn after another."""
    monkeypatch.setattr(profiling, "_wake", lambda: None)
    monkeypatch.setattr(profiling.torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(profiling, "profile", lambda activities: Profile(log))
    monkeypatch.setattr(profiling, "_device_events", lambda profiler: [("kernel", 0, 1)])
    left = iter(tokens)

    def turn() -> list[SimpleNamespace]:
        count = next(left)
        log.append(str(count))
        return [SimpleNamespace(token_ids=[0] * count)]

    return SimpleNamespace(core=SimpleNamespace(turn=turn))


def test_a_stretch_of_turns(monkeypatch) -> None:
    log: list[str] = []
    engine = turns(monkeypatch, log, [1, 2, 3, 4, 5])
    kept = engine.core.turn
    with profiling._profiled(engine, 1, 2, lambda deltas: True) as found:
        for _ in range(5):
            engine.core.turn()
    assert log == ["1", "start", "2", "3", "stop", "4", "5"]
    assert found == [("kernel", 0, 1)]
    assert engine.core.turn is kept


def test_only_steady_turns_count(monkeypatch) -> None:
    log: list[str] = []
    engine = turns(monkeypatch, log, [1, 4, 4, 2, 4, 4, 4])
    with profiling._profiled(engine, 2, 2, lambda deltas: profiling._produced(deltas) == 4):
        for _ in range(7):
            engine.core.turn()
    assert log == ["1", "4", "4", "start", "2", "4", "4", "stop", "4"]
