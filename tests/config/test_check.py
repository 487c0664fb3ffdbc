"""Ranges and contradictions: refused with the field and the remedy, however the configuration was made."""

from dataclasses import fields
from typing import Any

import pytest

from quire.base.errors import ConfigError
from quire.config.check import RANGES, TEXTS, check_config, check_engine, check_value
from quire.config.fields import SECTIONS, CacheConfig, Config, EngineConfig, ModelConfig, ServerConfig, section_of
from quire.config.parse import kind_of

pytestmark = pytest.mark.plain


def test_the_defaults_are_right() -> None:
    check_config(Config())


def test_every_number_has_a_range_and_every_rule_a_field() -> None:
    numbers = {f.name for cls in SECTIONS.values() for f in fields(cls) if kind_of(f).base in (int, float)}
    assert set(RANGES) == numbers
    assert all(section_of(name) for name in TEXTS)


@pytest.mark.parametrize("name", RANGES)
def test_both_ends_of_each_range(name: str) -> None:
    rule = RANGES[name]
    for value in (rule.least - 1, rule.most + rule.most * 0.01 + 1):
        with pytest.raises(ConfigError, match=f"^here must be .*, not .*; {rule.remedy[:12]}"):
            check_value(name, value, "here")
    check_value(name, rule.most if rule.above else int(rule.least), "here")


@pytest.mark.parametrize(("value", "good"), [(0.0, False), (1e-9, True), (1.0, True), (1.0001, False), (-0.1, False)])
def test_shares_are_above_nothing_and_at_most_all(value: float, good: bool) -> None:
    if good:
        check_value("gpu_memory_utilization", value, "here")
    else:
        with pytest.raises(ConfigError, match="above 0 and at most 1"):
            check_value("gpu_memory_utilization", value, "here")


@pytest.mark.parametrize("value", ["", "  ", "a\nb"])
def test_a_key_that_is_no_key_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="leave it unset to serve without a key"):
        check_value("api_key", value, "flag --api-key")


@pytest.mark.parametrize(
    ("engine", "complaint"),
    [
        (EngineConfig(model=ModelConfig(max_model_len=0)), r"model\.max_model_len must be at least 1"),
        (EngineConfig(cache=CacheConfig(kv_cache_memory_bytes=9, num_gpu_blocks_override=9)), "keep one"),
        (EngineConfig(model=ModelConfig(dtype="float8")), "dtype: 'float8' is not one of"),  # type: ignore[arg-type]
        (EngineConfig(model=ModelConfig(seed="4")), "seed: '4' is not a whole number"),  # type: ignore[arg-type]
        (EngineConfig(model=ModelConfig(seed=True)), "seed: True is not a whole number"),
        (EngineConfig(model=None), "None is not a ModelConfig"),  # type: ignore[arg-type]
    ],
)
def test_a_configuration_made_by_hand_is_checked(engine: EngineConfig, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        check_engine(engine)


@pytest.mark.parametrize("server", [ServerConfig(port=-1), ServerConfig(host=""), ServerConfig(shutdown_timeout_s=-1)])
def test_the_server_is_checked_too(server: Any) -> None:
    with pytest.raises(ConfigError, match=r"^server\."):
        check_config(Config(server=server))
