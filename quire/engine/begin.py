"""`begin`: from what the user asked for to an `EngineCore` that can take requests.

Platform, spec, ranks, weights, memory, pages, in this order; what can be refused is refused before memory is taken.
Called by `LLM` and by `engine/process.py`.
"""

import time
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
from quire.engine.core import EngineCore
from quire.engine.grammar_worker import GrammarWorker
from quire.engine.grammars import GrammarService
from quire.executors.base import PATIENCE, Executor, Progress
from quire.kvcache.layout import fit, shrunk
from quire.messages.pooling import GENERATE
from quire.messages.state import Capacity, Layout
from quire.messages.wire import EngineFacts
from quire.platforms import detect
from quire.platforms.ahead import ahead, pays
from quire.platforms.waking import wake
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

MakeExecutor = Callable[[RunSpec], Executor]


def executor_for(spec: RunSpec) -> Executor:
    """The executor that `spec` needs."""
    executor: Executor = EXECUTORS.get("inline" if spec.tensor_parallel_size == 1 else "processes")(spec)
    return executor


class Timeline:
    """Seconds that each phase of the start took.

    Args:
        age_s: how long ago the first phase began.
        on_mark: called when a phase ends.
        clock: seconds; never goes back. The engine's, too.
    """

    def __init__(
        self,
        age_s: float = 0.0,
        on_mark: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self._on_mark = on_mark
        self._last = clock() - age_s
        self.seconds: dict[str, float] = {}

    def mark(self, phase: str) -> None:
        """The phase that began at the last mark ends now."""
        now = self.clock()
        self.seconds[phase] = now - self._last
        self._on_mark()
        self._last = now


@collector_paused()
def begin(
    config: EngineConfig,
    model: ModelFacts,
    progress: Progress,
    timeline: Timeline | None = None,
    make_executor: MakeExecutor = executor_for,
    streams: bool = True,
) -> EngineCore:
    """An engine with its weights and pages in place.

    Args:
        config: what the user asked for.
        model: the checkpoint.
        progress: called while weights load.
        timeline: began when the process did; otherwise it begins now.
        make_executor: makes the ranks.
        streams: somebody waits for each token, not for the whole.

    Raises:
        ConfigError, PlatformError, CheckpointError: before any device memory is taken, where that is possible.
    """
    timeline = timeline or Timeline()
    wake(config.device.device)
    with ahead().clearing(_cleared_bytes(config, model)):
        # torch is imported here, if it was not before.
        spec = _resolved(config, model, streams)
        executor = make_executor(spec)
    timeline.mark("import")
    try:
        capacity, layout, patience_s = _settle_in(executor, spec, progress, timeline)
        scheduler = make(spec, layout, capacity.recordable)
        facts, vocabulary = _facts(spec, layout, timeline.seconds), _vocabulary(config, model)
        grammars = GrammarService(scheduler, GrammarWorker(executor, vocabulary))
        core = EngineCore(executor, scheduler, grammars, facts, spec.depth, timeline.clock)
    except BaseException:
        ahead().drop()
        executor.stop()
        raise
    core.patience_s = patience_s
    return core


def _resolved(config: EngineConfig, model: ModelFacts, streams: bool) -> RunSpec:
    """Everything decided, for the device that is there; what the user should know of it is logged."""
    platform = detect(config.device.device, config.device.kernels)
    for warning in platform.warnings:
        log.warning("%s", warning)
    spec = resolve(config, model, platform, streams)
    for note in spec.notes:
        log.info("%s", note)
    return spec


def _settle_in(
    executor: Executor, spec: RunSpec, progress: Progress, timeline: Timeline
) -> tuple[Capacity, Layout, float]:
    """Load the weights and take pages for what memory is left.

    Returns: what ranks can give, the pages' layout, and how long a step may take (0: any).
    """
    choices = executor.load(progress)
    ahead().drop()
    log.info("kernels: %s", "; ".join(f"{op}: {provider}" for op, provider in choices.items()))
    timeline.mark("load")
    began = timeline.clock()
    capacity = executor.measure()
    # A CPU may take minutes for a large model's longest step; on GPUs compiling is most of this time.
    patience_s = PATIENCE * (timeline.clock() - began) if spec.platform.name == "cpu" else 0.0
    timeline.mark("memory")
    layout = fit(spec, capacity)
    executor.allocate(layout)
    timeline.mark("pages")
    if sentence := shrunk(spec, layout):
        log.warning("%s", sentence)
    return capacity, layout, patience_s


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
