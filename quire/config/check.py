"""Ranges: what a value of the right type may be, and settings that contradict each other.

`RANGES` and `TEXTS` are the rules as data. Called by `sources` for each value with the place it came from, and by
`resolve` for a whole configuration, however it was made.
"""

from dataclasses import dataclass, fields

from quire.base.errors import ConfigError
from quire.config.fields import SECTIONS, CacheConfig, Config, EngineConfig
from quire.config.parse import Value, convert, kind_of

MOST_COUNT = 2**31 - 1
MOST_BYTES = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `least` to `most`, both allowed unless `above` (then least itself is not)."""

    least: float
    most: float
    remedy: str
    above: bool = False

    def holds(self, value: float) -> bool:
        """Whether `value` is inside."""
        return self.least <= value <= self.most and not (self.above and value == self.least)

    def __str__(self) -> str:
        low = f"above {self.least:g}" if self.above else f"at least {self.least:g}"
        return low if self.most >= MOST_COUNT else f"{low} and at most {self.most:g}"


def _share(remedy: str) -> Range:
    return Range(0, 1, remedy, above=True)


RANGES = {
    "max_model_len": Range(1, MOST_COUNT, "leave it unset to take what the model and the memory allow"),
    "seed": Range(0, MOST_BYTES, "any whole number from 0 on will do"),
    "max_logprobs": Range(0, MOST_COUNT, "0 permits the chosen token's logprob only"),
    "block_size": Range(1, MOST_COUNT, "16 is good on CPUs, 64 on GPUs"),
    "gpu_memory_utilization": _share("0.9 leaves a tenth of the GPU to others"),
    "cpu_memory_utilization": _share("0.3 takes three tenths of the free memory"),
    "kv_cache_memory_bytes": Range(1, MOST_BYTES, "give bytes, such as 4G, or leave it unset"),
    "num_gpu_blocks_override": Range(2, MOST_COUNT, "one page is never given out, so 2 is the least"),
    "max_num_seqs": Range(1, MOST_COUNT, "64 is good on CPUs, 256 on GPUs, 1024 on those with 64 GiB"),
    "max_num_batched_tokens": Range(1, MOST_COUNT, "512 is good on CPUs, 8192 on GPUs"),
    "max_preemptions": Range(0, MOST_COUNT, "0 pins every sequence from the start"),
    "itl_target_ms": Range(1, 60_000, "50 keeps running streams at 20 tokens a second beside prompts"),
    "watermark": Range(0, 0.5, "0.01 keeps a hundredth of the pages free"),
    "tensor_parallel_size": Range(1, 1024, "1 uses one device"),
    "threads": Range(1, 4096, "leave it unset to let torch choose"),
    "port": Range(0, 65535, "0 picks a free port"),
    "max_body_bytes": Range(1, MOST_BYTES, "32M is the default"),
    "max_queued_requests": Range(0, MOST_COUNT, "0 refuses whatever cannot run at once"),
    "max_queued_tokens": Range(1, MOST_BYTES, "8M is the default"),
    "response_store_bytes": Range(0, MOST_BYTES, "64M is the default"),
    "shutdown_timeout_s": Range(0, 86400, "0 ends at once"),
    "api_server_count": Range(1, 64, "1 serves most machines"),
    "stream_write_timeout_s": Range(1, 86400, "60 s is the default"),
    "stall_timeout_s": Range(1, 86400, "30 s is the default"),
    "load_timeout_s": Range(1, 86400, "600 s is the default"),
}

TEXTS = {
    "model": "give a folder or a hub name, or 'default' for the model that ships with quire",
    "tokenizer": "leave it unset to take the model's own",
    "revision": "leave it unset to take the newest",
    "device": "give auto, cpu, cuda or cuda:N",
    "kernels": "give auto or reference",
    "event_log": "leave it unset to record nothing",
    "host": "127.0.0.1 is this machine only, 0.0.0.0 everybody",
    # An empty key is mostly a variable that was not set: starting without any protection would be the worst answer.
    "api_key": "leave it unset to serve without a key",
    "served_model_name": "leave it unset to take the checkpoint's name",
    "chat_template": "leave it unset to take the checkpoint's",
}


def check_value(name: str, value: Value, source: str) -> None:
    """Refuse a value out of range. `source` names the place, as in `parse.convert`. Raises ConfigError."""
    if value is None:
        return
    rule = RANGES.get(name)
    if rule and isinstance(value, int | float) and not rule.holds(value):
        raise ConfigError(f"{source} must be {rule}, not {value}; {rule.remedy}")
    if name in TEXTS and isinstance(value, str):
        if not value.strip():
            raise ConfigError(f"{source} is empty; {TEXTS[name]}")
        if not value.isprintable():
            raise ConfigError(f"{source} holds a control character; {TEXTS[name]}")


def check_engine(engine: EngineConfig) -> None:
    """Check types, ranges and contradictions of a whole engine configuration. Raises ConfigError."""
    for section in fields(EngineConfig):
        _check_section(section.name, getattr(engine, section.name))
    check_cache(engine.cache)


def check_config(config: Config) -> None:
    """`check_engine`, and the server's section. Raises ConfigError."""
    check_engine(config.engine)
    _check_section("server", config.server)


def check_cache(cache: CacheConfig) -> None:
    """Settings of the cache that cannot both hold. Raises ConfigError."""
    if cache.kv_cache_memory_bytes is not None and cache.num_gpu_blocks_override is not None:
        raise ConfigError("kv_cache_memory_bytes and num_gpu_blocks_override both set the size of the cache; keep one")


def _check_section(section: str, values: object) -> None:
    if not isinstance(values, SECTIONS[section]):
        raise ConfigError(f"{section}: {values!r} is not a {SECTIONS[section].__name__}")
    for field in fields(SECTIONS[section]):
        value = getattr(values, field.name)
        kind = kind_of(field)
        if convert(kind, value, field.name) != value or (isinstance(value, str) and kind.base is not str):
            raise ConfigError(f"{field.name}: {value!r} is not {kind.accepts}")
        check_value(field.name, value, f"{section}.{field.name}")
