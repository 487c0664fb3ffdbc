"""Resolving: what the user asked, the facts of the model and the facts of the device become a `RunSpec`.

Pure: no file, no device, no environment; the same arguments give the same spec or the same ConfigError. After it there
is no "auto" left. What only memory can decide comes later, in `Layout`. Called by the engine core before loading.
"""

from dataclasses import dataclass, replace
from typing import Literal

import msgspec

from quire.base.errors import ConfigError
from quire.checkpoint.facts import ModelFacts
from quire.config.check import check_engine
from quire.config.fields import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from quire.config.spec import PlatformFacts, RunSpec
from quire.config.step_sizes import graph_rows, graph_singles, graph_tokens, warm_tokens


@dataclass(frozen=True, slots=True)
class PlatformDefaults:
    """What a kind of device gets where the user says nothing."""

    max_num_seqs: int
    max_num_batched_tokens: int
    async_scheduling: bool
    graphs: bool
    compiles: bool
    memory: Literal["cpu_memory_utilization", "gpu_memory_utilization"]


CPU = PlatformDefaults(64, 256, False, False, False, "cpu_memory_utilization")
GPU = PlatformDefaults(256, 8192, True, True, True, "gpu_memory_utilization")
KV_DTYPES = {
    "bfloat16": "bfloat16",
    "float16": "float16",
    "float32": "float32",
    "fp8": "float8_e4m3fn",
    "fp8_e4m3": "float8_e4m3fn",
    "fp8_e5m2": "float8_e5m2",
}
"""What keys and values are kept in, by `kv_cache_dtype`; auto keeps the model's dtype. Every device can do all: where
it has no instruction for a conversion, kernels convert by whole numbers."""
CPU_TOKENS = 1024
"""Of a step on CPUs where nobody waits for each token: threads wait for each other four times less often."""
DEFAULTS = {"cpu": CPU, "cuda": GPU, "rocm": GPU, "xpu": replace(GPU, graphs=False)}
LARGE_BYTES, LARGE_ROWS, LARGE_TOKENS = 64 << 30, 1024, 16384
"""A GPU with so much memory has room for the pages of so many sequences, and reads weights once for all of them; and
for so many tokens of a step, which take it half a second for 8 billion weights: nobody should wait for each token."""


def resolve(engine: EngineConfig, facts: ModelFacts, platform: PlatformFacts, streams: bool = True) -> RunSpec:
    """Decide everything that can be decided before loading. Raises ConfigError, and nothing else.

    `streams`: somebody waits for each token, not for the whole.
    """
    check_engine(engine)
    model, cache, scheduler, device = engine.model, engine.cache, engine.scheduler, engine.device
    ranks = engine.parallel.tensor_parallel_size
    defaults = _defaults(platform, streams)
    dtype, notes = _dtype(model, facts, platform)
    max_num_seqs = scheduler.max_num_seqs or defaults.max_num_seqs
    max_num_batched_tokens = scheduler.max_num_batched_tokens or defaults.max_num_batched_tokens
    max_model_len = _max_model_len(model, facts)
    whole = facts.pooling is not None and facts.pooling.whole
    if whole:
        max_num_batched_tokens = _whole_texts(scheduler, max_num_batched_tokens, max_model_len)
    overlap = defaults.async_scheduling if scheduler.async_scheduling is None else scheduler.async_scheduling
    # Collectives between ranks are not recorded.
    recorded = defaults.graphs and not device.enforce_eager and ranks == 1 and facts.pooling is None
    if device.deterministic:
        platform = _invariant(platform, facts, ranks)
    return RunSpec(
        facts=facts,
        platform=platform,
        dtype=dtype,
        kv_cache_dtype=KV_DTYPES.get(cache.kv_cache_dtype, dtype),
        model_impl=model.model_impl,
        trust_remote_code=model.trust_remote_code,
        quantization=model.quantization,
        load_format="dummy" if model.load_format == "dummy" else "safetensors",
        seed=model.seed,
        max_model_len=max_model_len,
        fit_max_model_len=model.max_model_len is None,
        page_size=cache.block_size or platform.page_size,
        memory_fraction=_memory_fraction(cache, defaults),
        kv_cache_memory_bytes=cache.kv_cache_memory_bytes,
        num_pages=cache.num_gpu_blocks_override,
        enable_prefix_caching=cache.enable_prefix_caching and not whole,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        policy=scheduler.scheduling_policy,
        depth=2 if overlap else 1,
        warm_tokens=warm_tokens(max_num_batched_tokens) if defaults.compiles else [],
        graph_rows=graph_rows(max_num_seqs) if recorded else [],
        graph_singles=graph_singles(max_num_seqs) if recorded else [],
        graph_tokens=graph_tokens(max_num_batched_tokens) if recorded else [],
        max_preemptions=scheduler.max_preemptions,
        watermark=scheduler.watermark,
        itl_target_s=None if scheduler.itl_target_ms is None else scheduler.itl_target_ms / 1000,
        max_logprobs=model.max_logprobs,
        tensor_parallel_size=ranks,
        threads=device.threads,
        deterministic=device.deterministic,
        event_log=engine.log.event_log,
        notes=notes,
    )


def _defaults(platform: PlatformFacts, streams: bool) -> PlatformDefaults:
    defaults = DEFAULTS[platform.name]
    if platform.name == "cpu":
        return defaults if streams else replace(defaults, max_num_batched_tokens=CPU_TOKENS)
    if platform.total_bytes < LARGE_BYTES:
        return defaults
    tokens = defaults.max_num_batched_tokens if streams else LARGE_TOKENS
    return replace(defaults, max_num_seqs=LARGE_ROWS, max_num_batched_tokens=tokens)


def _invariant(platform: PlatformFacts, facts: ModelFacts, ranks: int) -> PlatformFacts:
    """The platform with kernels for ops of which it has none whose results are the same in every batch."""
    if platform.name != "cpu" and "triton" not in platform.providers:
        raise ConfigError("deterministic: on a GPU it needs Triton's kernels; see `quire doctor`, or take --device cpu")
    if facts.pooling is not None:
        raise ConfigError("deterministic: vectors and scores depend on how texts are cut into steps; serve without it")
    if ranks > 2:
        raise ConfigError(
            f"deterministic: the order in which {ranks} ranks are summed depends on the size of the step; use one or "
            f"two (tensor_parallel_size={ranks})"
        )
    return msgspec.structs.replace(platform, providers=[*platform.providers, "batch_invariant"])


def _dtype(model: ModelConfig, facts: ModelFacts, platform: PlatformFacts) -> tuple[str, list[str]]:
    can = ", ".join(platform.dtypes)
    if not platform.dtypes:
        raise ConfigError(f"device: {platform.device_name} computes no type that quire knows; try --device cpu")
    if model.dtype != "auto":
        if model.dtype not in platform.dtypes:
            raise ConfigError(f"dtype={model.dtype}: {platform.device_name} computes {can}; choose one or dtype=auto")
        return model.dtype, []
    if facts.dtype in platform.dtypes:
        return facts.dtype, []
    chosen = platform.dtypes[0]
    return chosen, [f"weights are {facts.dtype}, {platform.device_name} computes {can}: running in {chosen}"]


def _max_model_len(model: ModelConfig, facts: ModelFacts) -> int:
    wanted, made_for = model.max_model_len, facts.context_len
    if wanted is None:
        if made_for < 1:
            raise ConfigError(f"max_model_len: the checkpoint {facts.name} states no context length; set it")
        return made_for
    if wanted > made_for and not model.allow_long_max_model_len:
        raise ConfigError(
            f"max_model_len={wanted} is beyond the {made_for} tokens that {facts.name} was made for; "
            f"lower it, or set allow_long_max_model_len and expect poor text"
        )
    return wanted


def _whole_texts(scheduler: SchedulerConfig, budget: int, longest: int) -> int:
    """Tokens per step of a model that reads every text in one step."""
    if scheduler.max_num_batched_tokens is not None and budget < longest:
        raise ConfigError(
            f"max_num_batched_tokens={budget}: this model reads a text in one step, and texts may have {longest} "
            f"tokens; raise it, or lower max_model_len"
        )
    return max(budget, longest)


def _memory_fraction(cache: CacheConfig, defaults: PlatformDefaults) -> float:
    shares = {
        "cpu_memory_utilization": cache.cpu_memory_utilization,
        "gpu_memory_utilization": cache.gpu_memory_utilization,
    }
    return shares[defaults.memory]
