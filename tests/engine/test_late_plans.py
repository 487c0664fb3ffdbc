"""Plans are made as late as the device allows, so that requests join the step that begins next; nobody idles for it."""

from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from quire.config.sources import engine_config
from quire.engine.begin import Timeline, begin
from quire.engine.core import EngineCore
from quire.messages.params import SamplingParams
from quire.messages.plan import StepPlan, StepResult
from quire.messages.request import Request
from quire.messages.state import Capacity, Layout, StateSpec
from tests.config import facts
from tests.tokenizer.samples import make_byte_bpe

pytestmark = pytest.mark.plain

HOST_S = 0.4e-3
STEP_S, TOKEN_S = 5e-3, 20e-6


class Made:
    """A step that ends at a moment of the machine's clock."""

    def __init__(self, machine: "Machine", ends: float, result: StepResult) -> None:
        self._machine, self._ends, self._result = machine, ends, result

    def wait(self) -> None:
        self._machine.now = max(self._machine.now, self._ends)

    def result(self) -> StepResult:
        self.wait()
        self._machine.now += self._machine.read_s
        return self._result


class Machine:
    """A clock, a host that takes HOST_S for a launch, and a device that computes one step after the other.

    Attributes:
        idle_s: how long the device had nothing to do between steps.
        step_s: what a step takes, beside TOKEN_S for each token of a prompt.
        read_s: what the host takes to read what a step brought.
    """

    def __init__(self, step_s: float = STEP_S, host_s: float = HOST_S, read_s: float = 0.0) -> None:
        self.step_s, self.host_s, self.read_s = step_s, host_s, read_s
        self.now = self.ends = 1.0
        self.idle_s, self.steps = 0.0, 0

    def load(self, progress: object) -> dict[str, str]:
        return {}

    def measure(self) -> Capacity:
        return Capacity(1 << 30, [StateSpec(16)])

    def allocate(self, layout: Layout) -> None:
        pass

    def step(self, plan: StepPlan) -> Made:
        self.now += self.host_s
        self.idle_s += max(0.0, self.now - self.ends) if self.steps else 0.0
        self.steps += 1
        prompts = sum(grant.tokens for grant in plan.grants if grant.tokens > 1)
        self.ends = max(self.now, self.ends) + self.step_s + TOKEN_S * prompts
        rows = [grant.row for grant in plan.grants if grant.samples]
        return Made(self, self.ends, StepResult(plan.step, rows, [7] * len(rows)))

    def stop(self) -> None:
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_byte_bpe(tmp_path_factory.mktemp("late"))


@pytest.fixture
def begun(folder: Path) -> Callable[[Machine], EngineCore]:
    def beginning(machine: Machine) -> EngineCore:
        config = engine_config(model="toy", max_num_seqs=4, async_scheduling=True, num_gpu_blocks_override=4000)
        with mock.patch("quire.engine.begin.detect", lambda device, kernels: facts.CPU):
            timeline = Timeline(clock=lambda: machine.now)
            return begin(config, facts.model(path=str(folder)), lambda a, b: None, timeline, lambda spec: machine)

    return beginning


def request(name: str, prompt: int, output: int) -> Request:
    params = SamplingParams(max_tokens=output, seed=1, temperature=0.0, ignore_eos=True)
    return Request(id=name, token_ids=[ord(name)] * prompt, params=params)


def serve(core: EngineCore, machine: Machine, arrivals: dict[float, Request], until: float) -> dict[str, float]:
    """The loop of `engine/process.py` on the machine's clock: when each request had its first token."""
    first: dict[str, float] = {}
    due = sorted(arrivals)
    while machine.now < until:
        pause_s = core.pause_ms / 1000
        heard = machine.now + pause_s
        if due and due[0] <= heard:
            machine.now = max(machine.now, due[0])
            core.add(arrivals[due.pop(0)])
            continue
        machine.now = heard
        if core.pause_ms:
            continue
        deltas = core.turn()
        for delta in deltas or ():
            first.setdefault(delta.id, machine.now)
        if deltas is None:
            machine.now = due[0] if due else until
    return first


def test_a_request_joins_the_step_that_begins_next(begun: Callable[[Machine], EngineCore]) -> None:
    machine = Machine()
    core = begun(machine)
    arrives = 1.1021
    first = serve(core, machine, {1.0: request("a", 16, 1000), arrives: request("b", 16, 10)}, 1.3)
    # What is left of the running step, and its own. A plan made one step ahead adds a third.
    assert first["b"] - arrives <= 2 * STEP_S + 16 * TOKEN_S + 1e-4
    # The device does not wait for it: the first launch of all is behind nothing.
    assert machine.idle_s <= 1e-9
    core.close()


def test_a_host_that_is_slower_than_its_device_never_waits(begun: Callable[[Machine], EngineCore]) -> None:
    machine = Machine(step_s=3e-3, host_s=4e-3)
    core = begun(machine)
    serve(core, machine, {1.0: request("a", 16, 1000)}, 2.0)
    assert machine.steps >= 0.99 * 1.0 / 4e-3
    core.close()


@pytest.mark.parametrize("read_s", [2e-3, 4e-3])
def test_a_host_that_reads_slowly_does_not_wait_longer(begun: Callable[[Machine], EngineCore], read_s: float) -> None:
    machine = Machine(read_s=read_s)
    core = begun(machine)
    serve(core, machine, {1.0: request("a", 16, 1000)}, 2.0)
    assert machine.idle_s <= 1e-9
    core.close()


def test_steps_that_become_shorter_are_overslept_once(begun: Callable[[Machine], EngineCore]) -> None:
    machine = Machine(step_s=20e-3)
    core = begun(machine)
    serve(core, machine, {1.0: request("a", 16, 1500)}, 2.0)
    before, machine.step_s = machine.idle_s, 4e-3
    serve(core, machine, {}, 3.0)
    assert machine.idle_s - before <= 20e-3
    assert core.pause_ms <= 4
    core.close()


def test_nobody_is_waited_for_who_could_not_begin(begun: Callable[[Machine], EngineCore]) -> None:
    machine = Machine()
    core = begun(machine)
    serve(core, machine, {1.0 + n / 1e6: request("abcd"[n], 16, 1000) for n in range(4)}, 1.2)
    assert not core.scheduler.open and core.pause_ms == 0
    core.close()


def test_steps_with_grammars_say_nothing_of_others(begun: Callable[[Machine], EngineCore]) -> None:
    machine = Machine()
    core = begun(machine)
    bound = core.scheduler.roster.grammars.bound
    with mock.patch.object(core.scheduler.roster.grammars, "bound", {core}):
        serve(core, machine, {1.0: request("a", 16, 1000)}, 1.2)
    assert not bound and core.scheduler.open and core.pause_ms == 0
    serve(core, machine, {}, 1.3)
    assert core.pause_ms > 0
    core.close()


@pytest.mark.parametrize("prompt", [16, 900])
@pytest.mark.parametrize("host_s", [HOST_S, 2e-3])
def test_the_device_never_waits_for_a_plan(begun: Callable[[Machine], EngineCore], host_s: float, prompt: int) -> None:
    machine = Machine(host_s=host_s)
    core = begun(machine)
    arrivals = {1.0: request("a", 16, 1500)} | {1.05 + n / 9: request("bcdefghi"[n], prompt, 8) for n in range(8)}
    serve(core, machine, arrivals, 2.0)
    assert machine.idle_s <= 1e-9
    core.close()
