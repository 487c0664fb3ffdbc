"""What the steps of a workload cost, by kind: played decode steps, played steps with prompts, and eager ones.

Of each step: its rows and tokens, how long the device had it, how long the device waited before it, and how long the
host took to launch it. Events on the stream measure the device, so the workload runs nearly as fast as without.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Any

import torch

from quire.cli.bench import time_works
from quire.cli.workloads import Work

from .engines import Quire

KINDS = {"_launch_recorded": "decode", "_launch_ragged": "played prompts", "_launch_eager": "eager"}
ROWS_A_LINE, TOKENS_A_LINE = 128, 1024


@dataclass(slots=True)
class Step:
    """One step: its rows, its tokens of prompts, the host's seconds, those the device waited, and its marks there."""

    rows: int
    prompt: int
    kind: str = ""
    host_s: float = 0.0
    wait_s: float = 0.0
    marks: list[torch.cuda.Event] = field(default_factory=lambda: [torch.cuda.Event(True) for _ in range(2)])

    @property
    def device_s(self) -> float:
        """Seconds between its marks."""
        return self.marks[0].elapsed_time(self.marks[1]) / 1e3


def by_kind(engine: Quire, works: list[Work]) -> str:
    """Serve `works` and tell of their steps: one line a kind and size, with sums, and the device's idle time."""
    steps: list[Step] = []
    with _noted(engine, steps):
        timed = time_works(engine, works, time.perf_counter)
    torch.cuda.synchronize()
    for before, step in pairwise(steps):
        step.wait_s = before.marks[1].elapsed_time(step.marks[0]) / 1e3
    steps.sort(key=_size)
    device, idle = sum(step.device_s for step in steps), sum(step.wait_s for step in steps)
    rate = timed.output_tokens / timed.seconds
    head = f"{timed.seconds:.3f} s, {rate:.0f} output tokens/s, {len(steps)} steps: device {device:.3f} s, "
    head += f"between steps {idle:.3f} s, before and after {timed.seconds - device - idle:.3f} s"
    return "\n".join([head, *(_line(size, list(some)) for size, some in groupby(steps, key=_size))])


def _line(size: tuple[str, int, int], steps: list[Step]) -> str:
    kind, rows, tokens = size
    total, wait = sum(step.device_s for step in steps), sum(step.wait_s for step in steps)
    median = statistics.median(step.device_s for step in steps) * 1e3
    host = statistics.median(step.host_s for step in steps) * 1e3
    line = f"  {kind:<15} rows <= {rows:4d} prompt tokens <= {tokens:5d}: {len(steps):5d} steps, device {total:6.3f} s "
    return line + f"(median {median:7.3f} ms), wait {wait:6.3f} s, launch {host:6.3f} ms"


def _size(step: Step) -> tuple[str, int, int]:
    """What is told in one line."""
    return step.kind, -(-step.rows // ROWS_A_LINE) * ROWS_A_LINE, -(-step.prompt // TOKENS_A_LINE) * TOKENS_A_LINE


@contextmanager
def _noted(engine: Quire, steps: list[Step]) -> Iterator[None]:
    launcher = engine.core.executor.runner.allocated.steps
    launch = launcher.launch

    def noted(plan: Any) -> Any:
        step = Step(len(plan.grants), sum(grant.tokens for grant in plan.grants if grant.tokens > 1))
        steps.append(step)
        started = time.perf_counter()
        step.marks[0].record()
        pending = launch(plan)
        step.marks[1].record()
        step.host_s = time.perf_counter() - started
        return pending

    def told(name: str, kind: str) -> Callable[..., Any]:
        kept = getattr(launcher, name)

        def run(*args: Any) -> Any:
            steps[-1].kind = kind
            return kept(*args)

        return run

    # The outer ones are told first, so the innermost names the step.
    for name, kind in KINDS.items():
        setattr(launcher, name, told(name, kind))
    launcher.launch = noted
    try:
        yield
    finally:
        for name in (*KINDS, "launch"):
            delattr(launcher, name)
