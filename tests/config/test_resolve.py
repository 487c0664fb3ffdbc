"""Resolving is pure: the same arguments give the same RunSpec, or the same ConfigError and nothing else."""

from dataclasses import fields, replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.base.errors import ConfigError
from quire.checkpoint.pooling import PoolerFacts
from quire.config.check import RANGES
from quire.config.fields import (
    SECTIONS,
    CacheConfig,
    DeviceConfig,
    EngineConfig,
    ModelConfig,
    ParallelConfig,
    SchedulerConfig,
)
from quire.config.parse import kind_of
from quire.config.resolve import resolve
from quire.config.spec import PlatformFacts, RunSpec
from tests.config.facts import CPU, GPU, model

pytestmark = pytest.mark.plain


def test_a_cpu_gets_small_defaults() -> None:
    spec = resolve(EngineConfig(), model(), CPU)
    assert (spec.max_num_seqs, spec.max_num_batched_tokens, spec.depth, spec.page_size) == (64, 256, 1, 16)
    assert spec.memory_fraction == CacheConfig().cpu_memory_utilization
    assert (spec.load_format, spec.policy, spec.enable_prefix_caching) == ("safetensors", "fcfs", True)


def test_steps_on_a_cpu_are_larger_where_nobody_waits() -> None:
    assert resolve(EngineConfig(), model(), CPU, streams=False).max_num_batched_tokens == 1024
    chosen = EngineConfig(scheduler=SchedulerConfig(max_num_batched_tokens=300))
    assert resolve(chosen, model(), CPU, streams=False).max_num_batched_tokens == 300


@pytest.mark.parametrize("name", ["cuda", "rocm", "xpu"])
def test_a_gpu_gets_large_defaults(name: str) -> None:
    spec = resolve(EngineConfig(), model(), msgspec.structs.replace(GPU, name=name))
    assert (spec.max_num_seqs, spec.max_num_batched_tokens, spec.depth, spec.page_size) == (256, 8192, 2, 64)
    assert spec.memory_fraction == CacheConfig().gpu_memory_utilization


@pytest.mark.parametrize(("streams", "tokens"), [(True, 8192), (False, 16384)])
def test_a_large_gpu_runs_more_at_once_and_larger_steps_where_nobody_waits(streams: bool, tokens: int) -> None:
    large = msgspec.structs.replace(GPU, total_bytes=80 << 30)
    spec = resolve(EngineConfig(), model(), large, streams)
    assert (spec.max_num_seqs, spec.max_num_batched_tokens) == (1024, tokens)
    assert spec.graph_rows[-1] == spec.graph_singles[-1] == 1024


def test_what_the_user_says_stands() -> None:
    engine = EngineConfig(
        model=ModelConfig(max_model_len=100, load_format="dummy", seed=5),
        cache=CacheConfig(block_size=3, num_gpu_blocks_override=7, enable_prefix_caching=False),
        scheduler=SchedulerConfig(max_num_seqs=2, max_num_batched_tokens=9, async_scheduling=True, max_preemptions=0),
    )
    spec = resolve(engine, model(), CPU)
    assert (spec.max_model_len, spec.fit_max_model_len, spec.load_format, spec.seed) == (100, False, "dummy", 5)
    assert (spec.page_size, spec.num_pages, spec.enable_prefix_caching) == (3, 7, False)
    assert (spec.max_num_seqs, spec.max_num_batched_tokens, spec.depth, spec.max_preemptions) == (2, 9, 2, 0)


def test_overlap_can_be_turned_off_on_a_gpu() -> None:
    assert resolve(EngineConfig(scheduler=SchedulerConfig(async_scheduling=False)), model(), GPU).depth == 1


@pytest.mark.parametrize(
    ("wanted", "checkpoint", "platform", "chosen", "noted"),
    [
        ("auto", "bfloat16", CPU, "bfloat16", False),
        ("auto", "float16", CPU, "float32", True),
        ("auto", "float64", GPU, "bfloat16", True),
        ("float32", "bfloat16", CPU, "float32", False),
        ("float16", "bfloat16", GPU, "float16", False),
    ],
)
def test_dtype(wanted: Any, checkpoint: str, platform: PlatformFacts, chosen: str, noted: bool) -> None:
    spec = resolve(EngineConfig(model=ModelConfig(dtype=wanted)), model(dtype=checkpoint), platform)
    assert spec.dtype == chosen
    assert [checkpoint in note and chosen in note for note in spec.notes] == ([True] if noted else [])


def test_a_dtype_that_the_device_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match="dtype=float16: a CPU computes float32, bfloat16"):
        resolve(EngineConfig(model=ModelConfig(dtype="float16")), model(), CPU)


@pytest.mark.parametrize(
    ("wanted", "kept"),
    [
        ("auto", "bfloat16"),
        ("float32", "float32"),
        ("float16", "float16"),
        ("fp8", "float8_e4m3fn"),
        ("fp8_e4m3", "float8_e4m3fn"),
        ("fp8_e5m2", "float8_e5m2"),
    ],
)
@pytest.mark.parametrize("platform", [CPU, GPU])
def test_what_pages_keep(wanted: Any, kept: str, platform: PlatformFacts) -> None:
    spec = resolve(EngineConfig(cache=CacheConfig(kv_cache_dtype=wanted)), model(dtype="bfloat16"), platform)
    assert (spec.dtype, spec.kv_cache_dtype) == ("bfloat16", kept)


def test_what_pages_cannot_keep_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"kv_cache_dtype: 'int8' is not one of auto, bfloat16, .*fp8_e5m2"):
        resolve(EngineConfig(cache=CacheConfig(kv_cache_dtype="int8")), model(), CPU)  # type: ignore[arg-type]


def test_max_model_len_fits_itself_only_when_unset() -> None:
    spec = resolve(EngineConfig(), model(context_len=777), CPU)
    assert (spec.max_model_len, spec.fit_max_model_len) == (777, True)


def test_max_model_len_beyond_the_model_needs_a_word() -> None:
    with pytest.raises(ConfigError, match=r"max_model_len=2049 is beyond the 2048 tokens .*allow_long_max_model_len"):
        resolve(EngineConfig(model=ModelConfig(max_model_len=2049)), model(), CPU)
    allowed = EngineConfig(model=ModelConfig(max_model_len=2049, allow_long_max_model_len=True))
    assert resolve(allowed, model(), CPU).max_model_len == 2049


def test_a_model_without_a_context_length_needs_one_from_the_user() -> None:
    with pytest.raises(ConfigError, match="states no context length"):
        resolve(EngineConfig(), model(context_len=0), CPU)


def good(field: Any) -> st.SearchStrategy[object]:
    """Values that the rules allow for this field."""
    kind, rule = kind_of(field), RANGES.get(field.name)
    if kind.choices:
        return st.sampled_from(kind.choices)
    if rule is not None and kind.base is int:
        return st.just(field.default) | st.integers(int(rule.least), int(rule.least) + 5000)
    if rule is not None:
        return st.floats(rule.least, rule.most, exclude_min=rule.above)
    return st.booleans() if kind.base is bool else st.text("ab/:", min_size=1)


def spoilt(engine: EngineConfig, changes: list[tuple[str, str, object]]) -> EngineConfig:
    """`engine` with some fields set to anything at all."""
    for section, name, value in changes:
        engine = replace(engine, **{section: replace(getattr(engine, section), **{name: value})})
    return engine


ENGINE_SECTIONS = {f.name: SECTIONS[f.name] for f in fields(EngineConfig)}
NAMES = [(section, f.name) for section, cls in ENGINE_SECTIONS.items() for f in fields(cls)]
ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([])
CHANGES = st.just([]) | st.lists(st.tuples(st.sampled_from(NAMES), ANYTHING).map(lambda c: (*c[0], c[1])), max_size=2)
GOOD = {
    section: st.builds(cls, **{f.name: good(f) for f in fields(cls) if f.name != "kv_cache_memory_bytes"})
    for section, cls in ENGINE_SECTIONS.items()
}
ENGINES = st.builds(spoilt, st.builds(EngineConfig, **GOOD), CHANGES)
MODELS = st.builds(
    model, dtype=st.sampled_from(["float32", "float64", ""]), context_len=st.sampled_from([0, 300, 90_000])
)
PLATFORMS = st.builds(
    lambda base, dtypes: msgspec.structs.replace(base, dtypes=dtypes),
    st.sampled_from([CPU, GPU]),
    st.sampled_from([["float32", "bfloat16", "float16"], ["bfloat16", "float32"], ["float32", "bfloat16"], []]),
)


@given(ENGINES, MODELS, PLATFORMS)
def test_resolve_gives_a_whole_spec_or_a_config_error(engine: EngineConfig, facts: Any, platform: Any) -> None:
    first, second = _outcome(engine, facts, platform), _outcome(engine, facts, platform)
    assert first == second
    if isinstance(first, RunSpec):
        assert first.dtype in platform.dtypes
        assert min(first.max_model_len, first.page_size, first.max_num_seqs, first.max_num_batched_tokens) >= 1
        assert first.depth in (1, 2)
        # A RunSpec goes to ranks as it is, so its types must be those that it declares.
        assert msgspec.convert(msgspec.to_builtins(first), RunSpec) == first


def _outcome(engine: EngineConfig, facts: Any, platform: Any) -> RunSpec | str:
    try:
        return resolve(engine, facts, platform)
    except ConfigError as error:
        return str(error)


def test_deterministic_brings_kernels_of_its_own_and_refuses_what_it_cannot_promise() -> None:
    engine = EngineConfig(device=DeviceConfig(deterministic=True))
    spec = resolve(engine, model(), CPU)
    assert spec.deterministic and spec.platform.providers == [*CPU.providers, "batch_invariant"]
    assert not resolve(EngineConfig(), model(), CPU).deterministic
    with pytest.raises(ConfigError, match=r"deterministic: .* Triton"):
        resolve(engine, model(), msgspec.structs.replace(GPU, providers=["torch_native"]))
    pooler = PoolerFacts(tasks=["embed"], whole=False, method="last", normalize=True, dimension=8)
    with pytest.raises(ConfigError, match="deterministic: vectors and scores"):
        resolve(engine, model(pooling=pooler), CPU)
    with pytest.raises(ConfigError, match="which 4 ranks"):
        resolve(replace(engine, parallel=ParallelConfig(tensor_parallel_size=4)), model(), CPU)
