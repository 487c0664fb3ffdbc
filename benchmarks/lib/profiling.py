"""Where the time of a step goes: kernels on the device and the gaps between them, and the host's phases.

Hooks itself between the phases of quire's core for the length of one batch. The figures of a profiled batch are no
throughput: they say what to look at.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from quire.cli.bench import time_works
from quire.cli.workloads import Work, workload
from quire.messages.params import SamplingParams

from .engines import Quire

SETTLE_STEPS, PROFILED_STEPS, SHOWN = 8, 16, 14
NAME_WIDTH = 84

Event = tuple[str, int, int]
"""What ran on the device: its name, start and end (ns)."""


@dataclass(slots=True)
class Turn:
    """Seconds of each phase of one turn of the core, how many sequences got a token, and whether prompts took part."""

    phases: dict[str, float] = field(default_factory=dict)
    produced: int = 0
    prompts: bool = False


def host_times(engine: Quire, running: int, setting: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Median microseconds of each phase of a step with `running` sequences decoding, greedily unless `setting` is."""
    works = _decoding(running, prompt=128)
    sampled = {"temperature": 0.0} if setting is None else dict(setting)
    params = [
        SamplingParams(max_tokens=work.output_tokens, ignore_eos=True, detokenize=False, seed=i, **sampled)
        for i, work in enumerate(works)
    ]
    turns: list[Turn] = []
    with _timed_phases(engine, turns):
        engine.generate([{"prompt_token_ids": work.prompt} for work in works], params, use_tqdm=False)
    steady = [turn for turn in turns if turn.produced == running][SETTLE_STEPS:-2] or turns
    names = dict.fromkeys(name for turn in steady for name in turn.phases)
    return {name: statistics.median(turn.phases.get(name, 0.0) for turn in steady) * 1e6 for name in names}


def kernels(engine: Quire, running: int, prompt: int) -> str:
    """A table of the kernels of decode steps with `running` sequences that began with `prompt` tokens."""
    works = _decoding(running, prompt)
    with _profiled(engine, SETTLE_STEPS, PROFILED_STEPS, lambda deltas: _produced(deltas) == running) as found:
        time_works(engine, works, time.perf_counter)
    return _kernel_table(found, PROFILED_STEPS)


def stretch(engine: Quire, works: list[Work], first: int, count: int) -> str:
    """A table of the kernels of `count` turns of the core from turn `first` on, while it serves `works`."""
    with _profiled(engine, first, count, lambda deltas: True) as found:
        time_works(engine, works, time.perf_counter)
    return _kernel_table(found, count)


def classes(engine: Quire, works: list[Work]) -> str:
    """Turns that decode alone and turns that compute prompts, too: how many, and the host's mean microseconds."""
    turns: list[Turn] = []
    with _timed_phases(engine, turns):
        time_works(engine, works, time.perf_counter)
    lines = []
    for name, wanted in (("decoding", False), ("prompts", True)):
        some = [turn for turn in turns if turn.prompts is wanted]
        means = {
            phase: statistics.mean(turn.phases.get(phase, 0.0) for turn in some) * 1e6
            for phase in dict.fromkeys(phase for turn in some for phase in turn.phases)
        }
        lines.append(f"{len(some)} turns {name}: " + ", ".join(f"{phase} {us:.0f}" for phase, us in means.items()))
    return "\n".join(lines)


def _wake() -> None:
    """The first profile of a process starts CUPTI, which takes a while."""
    with profile(activities=[ProfilerActivity.CUDA]):
        torch.cuda.synchronize()


def _decoding(running: int, prompt: int) -> list[Work]:
    works = workload("decode-64", seed=f"profile-{running}-{prompt}")[:1]
    tokens = (works[0].prompt * 2)[:prompt]
    # Another first token each, so that no prompt is in the prefix cache.
    return [Work([1000 + i, *tokens[1:]], SETTLE_STEPS + PROFILED_STEPS + 16) for i in range(running)]


@contextmanager
def _timed_phases(engine: Quire, turns: list[Turn]) -> Iterator[None]:
    core = engine.core
    kept = core.turn, core.scheduler.plan, core.executor.step, core.scheduler.commit
    now = Turn()
    left_at = time.perf_counter()

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args)
            finally:
                now.phases[name] = now.phases.get(name, 0.0) + time.perf_counter() - started

        return run

    def step(plan: Any) -> Any:
        now.prompts = any(grant.tokens > 1 for grant in plan.grants)
        pending = timed("launch", kept[2])(plan)
        return _Pending(timed("wait", pending.wait), timed("result", pending.result))

    def turn() -> Any:
        nonlocal now, left_at
        now = Turn({"outputs": time.perf_counter() - left_at})
        deltas = timed("turn", kept[0])()
        now.produced = _produced(deltas)
        turns.append(now)
        left_at = time.perf_counter()
        return deltas

    core.turn, core.executor.step = turn, step
    core.scheduler.plan, core.scheduler.commit = timed("plan", kept[1]), timed("commit", kept[3])
    try:
        yield
    finally:
        core.turn, core.scheduler.plan, core.executor.step, core.scheduler.commit = kept


@dataclass(frozen=True, slots=True)
class _Pending:
    """A launched step whose wait is timed."""

    wait: Callable[[], Any]
    result: Callable[[], Any]


@contextmanager
def _profiled(engine: Quire, first: int, count: int, counts: Callable[[Any], bool]) -> Iterator[list[Event]]:
    """Profile the core's turns while `count` of those that count go by, after the `first` of them.

    Args:
        counts: whether a turn with these deltas does.

    Yields: a list that gets what ran on the device.
    """
    _wake()
    core, kept = engine.core, engine.core.turn
    profiler = profile(activities=[ProfilerActivity.CUDA])
    found: list[Event] = []
    done, running = 0, False

    def turn() -> Any:
        nonlocal done, running
        if done == first and not running:
            torch.cuda.synchronize()
            profiler.start()
            running = True
        deltas = kept()
        done += counts(deltas)
        if done == first + count and not found:
            torch.cuda.synchronize()
            profiler.stop()
            found.extend(_device_events(profiler))
        return deltas

    core.turn = turn
    try:
        yield found
    finally:
        core.turn = kept


def _produced(deltas: Any) -> int:
    """How many tokens a turn has brought."""
    return sum(len(delta.token_ids) for delta in deltas or ())


def _device_events(profiler: profile) -> list[Event]:
    inner = profiler.profiler
    assert inner is not None and inner.kineto_results is not None
    return [
        (event.name(), event.start_ns(), event.start_ns() + event.duration_ns())
        for event in inner.kineto_results.events()
        if event.device_type() == DeviceType.CUDA and event.duration_ns() > 0
    ]


def _kernel_table(events: list[Event], steps: int) -> str:
    if not events:
        return "the profiler saw nothing on the device"
    # A kernel that is launched before its predecessor ends waits for it: the time since the last end is what it took.
    events.sort(key=lambda event: event[2])
    first, reached = min(start for _, start, _ in events), 0
    span = events[-1][2] - first
    busy = 0
    times: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for name, start, end in events:
        own = end - max(start, reached)
        busy += own
        reached = end
        times[name] += own
        calls[name] += 1
    head = f"{span / steps / 1e3:.1f} us a step, device busy {busy / steps / 1e3:.1f} us, idle {1 - busy / span:.0%}"
    lines = [f"{head}, {len(events) / steps:.0f} launches"]
    lines += [
        f"{ns / steps / 1e3:9.1f} us {ns / span:5.1%} {calls[name] / steps:7.1f} x {_short(name)}"
        for name, ns in times.most_common(SHOWN)
    ]
    return "\n".join(lines)


def _short(name: str) -> str:
    """A kernel's name without the words that all of them have."""
    for word in ("void ", "at::native::", "(anonymous namespace)::", "at::cuda::", "unsigned int", "std::array"):
        name = name.replace(word, "")
    return name if len(name) <= NAME_WIDTH else name[: NAME_WIDTH - 1] + "~"
