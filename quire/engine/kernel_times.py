"""Times every provider of every op, on the inputs that one step of a model gives them. For `quire bench kernels`.

The calls of a step are noted while the model runs; then each provider repeats all calls of an op, layer after layer, so
that weights come from memory as they do in a step. On CUDA devices the calls are recorded in a graph if they can be.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from quire.checkpoint.facts import ModelFacts
from quire.config.fields import EngineConfig
from quire.config.resolve import resolve
from quire.config.spec import RunSpec
from quire.layers.build import Build
from quire.messages.params import SamplingParams
from quire.messages.plan import Grant, NewRow, StepPlan
from quire.messages.state import GroupLayout, Layout
from quire.ops.registry import OPS, REFERENCE, Op, Provider
from quire.parallel.mesh import Mesh
from quire.platforms import detect
from quire.runner.runner import Runner

RUNS = 5
SLOW_S = 0.2
"""A provider whose calls take longer is timed once."""

Calls = list[tuple[Any, ...]]


@dataclass(slots=True)
class Noted:
    """All calls of a step to one op with the same spec: who served them, and their arguments in order."""

    op: str
    spec: Any
    provider: str
    function: Callable[..., Any]
    calls: Calls = field(default_factory=list)


@dataclass(frozen=True)
class NotingBuild(Build):
    """A Build whose ops note their calls."""

    noted: list[Noted] = field(default_factory=list)

    def op(self, op: Op, spec: Any, instead: Callable[..., Any] | None = None) -> Callable[..., Any]:
        """See Build."""
        function = super().op(op, spec, instead)
        # Specs differ by type; equal ones of one op are one line of the report.
        note = next((n for n in self.noted if n.op == op.name and n.spec == spec), None)
        if note is None:
            note = Noted(op.name, spec, self.choices[-1].provider, function)
            self.noted.append(note)
        calls = note.calls

        def noting(*args: Any) -> Any:
            calls.append(args)
            return function(*args)

        return noting


def measure(config: EngineConfig, model: ModelFacts, rows: int, tokens: int, context: int) -> list[dict[str, object]]:
    """Time the ops of one step of `rows` sequences, each computing `tokens` tokens after `context` past ones.

    Returns an entry per op and spec: its calls in the step, who serves it, microseconds a call by provider, and why
    others cannot. Raises ConfigError, PlatformError, CheckpointError.
    """
    spec = resolve(config, model, detect(config.device.device, config.device.kernels))
    runner = Runner(spec, Mesh(), NotingBuild)
    build = runner.build
    assert isinstance(build, NotingBuild)
    runner.load(lambda done, total: None)
    plan, layout = _plan(spec, [state.spec for state in build.states], (rows, tokens, context))
    runner.allocate(layout)
    for noted in build.noted:
        noted.calls.clear()
    runner.launch(plan).result()
    with torch.inference_mode():
        return [_report(noted, runner.device, spec.platform.providers) for noted in build.noted if noted.calls]


def _plan(spec: RunSpec, states: Sequence[Any], sizes: tuple[int, int, int]) -> tuple[StepPlan, Layout]:
    rows, tokens, context = sizes
    each = -(-(context + tokens + 1) // spec.page_size)
    groups = [GroupLayout(s, states.count(s), spec.page_size, rows * each + 1) for s in dict.fromkeys(states)]
    params = SamplingParams(temperature=0.0)
    new = [
        NewRow(
            row,
            [(row * 31 + i * 7) % spec.facts.vocab_size for i in range(context + tokens)],
            context + tokens,
            context,
            [list(range(1 + row * each, 1 + (row + 1) * each)) for _ in groups],
            params,
            row,
            [],
            [],
            context + tokens + 1,
        )
        for row in range(rows)
    ]
    grants = [Grant(row, tokens, True, [[] for _ in groups]) for row in range(rows)]
    return StepPlan(1, [], new, grants), Layout(groups, spec.max_model_len)


def _report(noted: Noted, device: torch.device, offered: Sequence[str]) -> dict[str, object]:
    times: dict[str, float] = {}
    refused: dict[str, str] = {}
    providers = {name: p for name, p in OPS[noted.op].providers.items() if name in (*offered, REFERENCE)}
    if noted.provider not in providers:
        # Several providers by the number of tokens, or a fused op made of small ones.
        providers[noted.provider] = Provider(noted.provider, noted.function, lambda spec: None)
    for name, provider in providers.items():
        reason = provider.refuses(noted.spec)
        if reason is None:
            times[name] = round(_seconds(provider, noted.calls, device) / len(noted.calls) * 1e6, 2)
        else:
            refused[name] = reason
    shapes = [list(arg.shape) for arg in noted.calls[0] if isinstance(arg, Tensor)]
    served = {"op": noted.op, "calls": len(noted.calls), "shapes": shapes, "provider": noted.provider}
    return {**served, "us": times, "refused": refused}


def _seconds(provider: Provider, calls: Calls, device: torch.device) -> float:
    """Median seconds of all `calls`, one after another."""

    def work() -> None:
        for args in calls:
            provider.function(*args)

    run = work
    for _ in range(2):  # compiles
        started = time.perf_counter()
        work()
        _wait(device)
    slow = time.perf_counter() - started > SLOW_S
    if device.type == "cuda" and provider.capturable and not slow:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        run = graph.replay
        run()
    return statistics.median(_timed(run, 1 if slow else RUNS, device))


def _timed(run: Callable[[], None], runs: int, device: torch.device) -> Iterator[float]:
    for _ in range(runs):
        _wait(device)
        started = time.perf_counter()
        run()
        _wait(device)
        yield time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)
