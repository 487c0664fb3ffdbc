"""Whose time it is, where kernels overlap and where the device waits."""

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
