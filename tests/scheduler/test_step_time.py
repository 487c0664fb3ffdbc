"""Steps stay within the latency target of running streams, whatever the device's speed; prompts go on all the same."""

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.messages.params import SamplingParams
from quire.messages.plan import StepPlan, StepResult
from quire.messages.request import Request
from quire.messages.state import GroupLayout, Layout, StateSpec
from quire.scheduler.limits import Limits
from quire.scheduler.scheduler import Scheduler
from quire.scheduler.step_time import LEAST_TOKENS, StepTimeModel

pytestmark = pytest.mark.plain

LAUNCHES_S = 16e-3
LAYOUT = Layout([GroupLayout(StateSpec(16), 1, 16, 6000)], 40_000)


class Device:
    """Takes as long as a `StepTimeModel` says, with other numbers, and with noise."""

    def __init__(self, base: float, token: float, pair: float, noise: float = 0.0, recorded: int = 8192) -> None:
        self.base, self.token, self.pair = base, token, pair
        self.recorded = recorded
        self.known: dict[int, int] = {}
        self.draw = random.Random(1)
        self.noise = noise

    def run(self, plan: StepPlan) -> tuple[StepResult, float, int]:
        """The result, its seconds, and the prompt tokens in it."""
        for new in plan.new:
            self.known[new.row] = new.computed
        seconds, read = self.base, 0
        for grant in plan.grants:
            before = self.known[grant.row]
            self.known[grant.row] = before + grant.tokens
            if grant.tokens > 1:
                read += grant.tokens
                seconds += grant.tokens * (self.token + self.pair * (before + grant.tokens / 2))
        # Larger steps are launched kernel by kernel.
        seconds += LAUNCHES_S if read > self.recorded else 0.0
        rows = [grant.row for grant in plan.grants if grant.samples]
        factor = 1 + self.noise * (2 * self.draw.random() - 1)
        return StepResult(plan.step, rows, [7] * len(rows)), seconds * factor, read


def request(name: str, prompt: int, output: int) -> Request:
    params = SamplingParams(max_tokens=output, seed=1, temperature=0.0)
    return Request(id=name, token_ids=[ord(name)] * prompt, params=params)


def play(device: Device, target_s: float | None) -> tuple[list[float], list[int], int]:
    """Two streams, and three long prompts that come one after the other: seconds of steps, prompt tokens, steps."""
    limits = Limits(max_num_seqs=8, max_num_batched_tokens=8192, itl_target_s=target_s, prefix_caching=False)
    scheduler = Scheduler(limits, LAYOUT)
    for name in "ab":
        scheduler.add(request(name, 32, 3000), 0.0)
    seconds, read = [], []
    for step in range(1500):
        if step % 400 == 50:
            scheduler.add(request("cdef"[step // 400], 20_000, 2), float(step))
        plan = scheduler.plan(float(step))
        assert plan is not None
        result, took, tokens = device.run(plan)
        scheduler.commit(result, took)
        if step % 100 == 0:
            scheduler.check()
        seconds.append(took)
        read.append(tokens)
    return seconds, read, scheduler.counters.finished


DEVICES = {
    "fast": Device(2e-3, 3e-6, 2e-10),
    "slow": Device(30e-3, 100e-6, 5e-9),
    "noisy": Device(5e-3, 10e-6, 1e-9, noise=0.2),
}


@pytest.mark.parametrize("name", DEVICES)
def test_steps_keep_to_the_target_while_prompts_are_read(name: str) -> None:
    device = DEVICES[name]
    target = 3 * device.base
    seconds, read, _ = play(device, target)
    late = [took for took, tokens in zip(seconds, read, strict=True) if tokens and took > 1.5 * target]
    # The very first prompts teach it.
    assert len(late) <= 6
    reading = sorted(took for took, tokens in zip(seconds[500:], read[500:], strict=True) if tokens)
    assert reading[int(0.99 * len(reading))] <= 1.5 * target
    # Nor is the room wasted: a step that reads takes most of what it may.
    assert statistics.median(reading) > 0.6 * target
    assert sum(read) > 3 * 20_000


@pytest.mark.parametrize("recorded", [128, 256, 600])
def test_a_jump_between_sizes_is_found_and_kept_away_from(recorded: int) -> None:
    device, target = Device(2e-3, 4e-6, 1e-10, recorded=recorded), 10e-3
    seconds, read, finished = play(device, target)
    late = [took for took, tokens in zip(seconds, read, strict=True) if tokens and took > 1.5 * target]
    assert len(late) <= 12
    reading = [tokens for tokens in read[500:] if tokens]
    assert statistics.median(reading) > 0.8 * recorded, "all of what is recorded is made use of"
    late_later = [took for took in seconds[500:] if took > 1.5 * target]
    assert len(late_later) <= 0.01 * len(seconds[500:])
    assert finished


def test_without_a_target_prompts_take_all_of_a_step() -> None:
    _, read, _ = play(Device(2e-3, 3e-6, 2e-10), None)
    assert max(read) > 8000


def test_nobody_streams_nobody_waits() -> None:
    limits = Limits(max_num_seqs=8, max_num_batched_tokens=8192, itl_target_s=0.001)
    scheduler = Scheduler(limits, LAYOUT)
    scheduler.add(request("a", 8000, 2), 0.0)
    plan = scheduler.plan(0.0)
    assert plan is not None and plan.grants[0].tokens == 8000


def test_prompts_go_on_however_late_a_step_is() -> None:
    device = Device(50e-3, 1e-4, 0.0)
    limits = Limits(max_num_seqs=8, max_num_batched_tokens=8192, itl_target_s=0.001)
    scheduler = Scheduler(limits, LAYOUT)
    scheduler.add(request("a", 8, 3000), 0.0)
    for step in range(3):
        plan = scheduler.plan(float(step))
        assert plan is not None
        scheduler.commit(*device.run(plan)[:2])
    scheduler.add(request("b", 200, 2), 9.0)
    scheduler.add(request("c", 200, 2), 9.0)
    read = []
    for step in range(10):
        plan = scheduler.plan(float(step))
        assert plan is not None
        read.append([grant.tokens for grant in plan.grants if grant.tokens > 1])
        scheduler.commit(*device.run(plan)[:2])
    assert all(tokens == [LEAST_TOKENS] for tokens in read)


@given(st.lists(st.tuples(st.integers(0, 8192), st.floats(0, 1e9), st.floats(0, 10)), max_size=200))
def test_no_history_breaks_the_model(history: list[tuple[int, float, float]]) -> None:
    step_times = StepTimeModel(0.05)
    for tokens, pairs, seconds in history:
        step_times.observe(tokens, pairs, seconds)
    assert 0 <= step_times.room_s() <= 0.05
    assert step_times.tokens(1000, step_times.room_s()) >= LEAST_TOKENS
    assert step_times.cost_s(100, 1000) >= 0
