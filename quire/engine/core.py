"""`EngineCore`: scheduler and executor in one loop, plan, run, commit.

One loop serves plain (depth 1), overlapped (2) and pipelined execution. `LLM` turns it in its own thread;
`engine/process.py` turns it in a process of its own and speaks to front ends. It knows tokens, never text.
"""

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from quire.base.collector import collector_paused
from quire.base.logging import get_logger
from quire.base.registry import Registry
from quire.checkpoint import names
from quire.checkpoint.facts import ModelFacts
from quire.config.fields import EngineConfig
from quire.config.resolve import resolve
from quire.config.spec import RunSpec
from quire.engine.grammars import GrammarDesk
from quire.engine.slack import Slack
from quire.executors.base import Executor, Pending, Progress
from quire.kvcache.layout import fit, shrunk
from quire.messages.plan import StepPlan
from quire.messages.pooling import GENERATE
from quire.messages.request import Request
from quire.messages.state import Layout
from quire.messages.wire import Delta, EngineFacts
from quire.platforms import detect
from quire.platforms.ahead import ahead, pays
from quire.scheduler.build import make
from quire.structured.matcher import Vocabulary
from quire.version import __version__

log = get_logger(__name__)

EXECUTORS = Registry(
    "executor",
    {"inline": "quire.executors.inline:InlineExecutor", "processes": "quire.executors.processes:ProcessExecutor"},
)

ONLINE_BITS = {"int8": 8, "int4": 4}
"""Of a weight that is quantized while it loads; the others have 16, or as many as in their files."""

PATIENCE = 3.0
"""A step may take so many times what the largest one took when it was measured."""

MakeExecutor = Callable[[RunSpec], Executor]


def executor_for(spec: RunSpec) -> Executor:
    """The executor that `spec` needs."""
    executor: Executor = EXECUTORS.get("inline" if spec.tensor_parallel_size == 1 else "processes")(spec)
    return executor


class EngineCore:
    """One engine: its scheduler, its ranks and the plans in flight.

    Args:
        config: what the user asked for.
        model: the checkpoint.
        progress: called while weights load.
        timeline: began when the process did; otherwise it begins now.
        make_executor: makes the ranks.
        clock: seconds; never goes back.
        streams: somebody waits for each token, not for the whole.

    Attributes:
        patience_s: how long a step may take before the engine counts as hung; 0 has no opinion.

    Raises:
        ConfigError, PlatformError, CheckpointError: before any device memory is taken, where that is possible.
    """

    @collector_paused()
    def __init__(
        self,
        config: EngineConfig,
        model: ModelFacts,
        progress: Progress,
        timeline: "Timeline | None" = None,
        make_executor: MakeExecutor = executor_for,
        clock: Callable[[], float] = time.monotonic,
        streams: bool = True,
    ) -> None:
        self._clock = clock
        timeline = timeline or Timeline()
        with ahead().clearing(_cleared_bytes(config, model)):
            # torch is imported here, if it was not before.
            platform = detect(config.device.device, config.device.kernels)
            for warning in platform.warnings:
                log.warning("%s", warning)
            spec = resolve(config, model, platform, streams)
            for note in spec.notes:
                log.info("%s", note)
            self.executor = make_executor(spec)
        timeline.mark("import")
        try:
            choices = self.executor.load(progress)
            ahead().drop()
            log.info("kernels: %s", "; ".join(f"{op}: {provider}" for op, provider in choices.items()))
            timeline.mark("load")
            began = time.monotonic()
            capacity = self.executor.measure()
            # A CPU may take minutes for a large model's longest step; on GPUs compiling is most of this time.
            self.patience_s = PATIENCE * (time.monotonic() - began) if platform.name == "cpu" else 0.0
            layout = fit(spec, capacity)
            self.executor.allocate(layout)
            timeline.mark("memory")
            if sentence := shrunk(spec, layout):
                log.warning("%s", sentence)
        except BaseException:
            ahead().drop()
            self.executor.stop()
            raise
        self.scheduler = make(spec, layout)
        self.grammars = GrammarDesk(self.executor, self.scheduler, _vocabulary(config, model))
        self.depth = spec.depth
        self.in_flight: deque[tuple[StepPlan, Pending, float]] = deque()
        self._ended_at = 0.0
        self._slack = Slack()
        self.facts = _facts(spec, layout, timeline.seconds)

    @property
    def busy(self) -> bool:
        """Whether a sequence waits or runs, or a plan is in flight."""
        return bool(self.in_flight) or self.scheduler.has_work

    def turn(self) -> list[Delta] | None:
        """One turn of the loop: plan and launch, then settle the oldest plan. None when nothing could be done."""
        planned = self._clock()
        plan = self.scheduler.plan(planned) if len(self.in_flight) < self.depth else None
        if plan is not None:
            self.in_flight.append((plan, self.executor.step(plan), self._clock()))
        if not self.in_flight:
            return self.scheduler.failures() or None
        if plan is not None and len(self.in_flight) < self.depth:
            return []
        began, asked = self._began, self._clock()
        result = self.in_flight.popleft()[1].result()
        self._ended_at = self._clock()
        seconds = self._ended_at - began
        if plan is not None:
            self._slack.observe(self.scheduler.flights[0].size, seconds - (asked - planned), self._ended_at - asked)
        return self.scheduler.commit(result, seconds)

    @property
    def pause_ms(self) -> int:
        """Whole milliseconds for which the next plan can wait for requests, as the device computes until then."""
        if len(self.in_flight) != 1 or self.depth == 1 or not self.scheduler.open:
            return 0
        until = self._began + self._slack.of(self.scheduler.flights[0].size)
        return max(0, int(1000 * (until - self._clock())))

    @property
    def _began(self) -> float:
        """When the oldest plan in flight did: when the one before had ended, or when it was launched."""
        return max(self.in_flight[0][2], self._ended_at)

    def add(self, request: Request) -> None:
        """Take a request. Raises RequestError if it can never fit, or if its grammar is known to be bad."""
        self.grammars.want(request)
        self.scheduler.add(request, self._clock())

    def abort(self, ids: list[str]) -> None:
        """End requests; unknown ids are ignored."""
        for request_id in ids:
            self.scheduler.abort(request_id)
            self.grammars.forget(request_id)

    def close(self) -> None:
        """Wait for plans in flight, end the ranks, give all memory back."""
        try:
            while self.in_flight:
                self.in_flight.popleft()[1].result()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """End the ranks without waiting for plans in flight, and give all memory back."""
        self.in_flight.clear()
        self.grammars.close()
        self.executor.stop()


class Timeline:
    """Seconds that each phase of the start took.

    Args:
        age_s: how long ago the first phase began.
        on_mark: called when a phase ends.
    """

    def __init__(self, age_s: float = 0.0, on_mark: Callable[[], None] = lambda: None) -> None:
        self._on_mark = on_mark
        self._last = time.monotonic() - age_s
        self.seconds: dict[str, float] = {}

    def mark(self, phase: str) -> None:
        """The phase that began at the last mark ends now."""
        now = time.monotonic()
        self.seconds[phase] = now - self._last
        self._on_mark()
        self._last = now


def _cleared_bytes(config: EngineConfig, model: ModelFacts) -> int:
    """Memory worth clearing while torch is imported: what the weights will take in this process, by their files' size.

    Too much where files hold float32 that becomes bfloat16, or scales: what nobody takes is given back.
    """
    device = config.device
    if config.parallel.tensor_parallel_size > 1 or not pays(device.device, device.kernels):
        return 0
    files = [path for path in Path(model.path).glob("*.safetensors") if not path.name.startswith("consolidated")]
    return sum(path.stat().st_size for path in files) * ONLINE_BITS.get(config.model.quantization or "", 16) // 16


def _vocabulary(config: EngineConfig, model: ModelFacts) -> Vocabulary:
    folder = model.path if config.model.tokenizer is None else names.resolve(config.model.tokenizer, None)
    return Vocabulary(str(Path(folder) / "tokenizer.json"), model.vocab_size, tuple(model.eos_token_ids))


def _facts(spec: RunSpec, layout: Layout, timeline: dict[str, float]) -> EngineFacts:
    pooler = spec.facts.pooling
    return EngineFacts(
        version=__version__,
        max_model_len=layout.max_model_len,
        vocab_size=spec.facts.vocab_size,
        max_num_seqs=spec.max_num_seqs,
        max_prompt_len=layout.max_model_len - (pooler is None),
        max_logprobs=spec.max_logprobs,
        layout=layout,
        device=f"{spec.platform.device} ({spec.platform.device_name})",
        dtype=spec.dtype,
        kv_cache_dtype=spec.kv_cache_dtype,
        timeline=timeline,
        tasks=[GENERATE] if pooler is None else pooler.tasks,
        pooler=pooler,
    )
