"""The settings: frozen dataclasses, one per section.

A field is at once the flag `--max-model-len`, the environment name `QUIRE_MODEL__MAX_MODEL_LEN`, the file key
`model.max_model_len`, the keyword `LLM(max_model_len=...)` and its line of documentation. Field names are unique over
all sections, so that flags need no prefix.
"""

# ruff: noqa: RUF009  (`setting` is `dataclasses.field` with metadata: it makes a field, not a shared default)

from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal

from quire.checkpoint.facts import Implementation
from quire.checkpoint.pooling import Runner
from quire.checkpoint.sentences import Method

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
KVCacheDtype = Literal["auto", "bfloat16", "float16", "float32", "fp8", "fp8_e4m3", "fp8_e5m2"]
Quantization = Literal[
    "int8", "int4", "fp8", "nvfp4", "mxfp4", "modelopt", "modelopt_fp4", "compressed-tensors", "gptq", "awq",
    "bitsandbytes", "gguf", "torchao",
]  # fmt: skip
LoadFormat = Literal["auto", "safetensors", "dummy"]
Policy = Literal["fcfs", "priority", "lpm"]
LogLevel = Literal["debug", "info", "warning", "error"]


def setting(default: Any, help: str, *, short: str | None = None, secret: bool = False) -> Any:
    """A field with its line of documentation, an optional short flag (`-tp`) and whether its value must be masked."""
    return field(default=default, metadata={"help": help, "short": short, "secret": secret})


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Which model, and how it is loaded."""

    model: str = setting(
        "default", "Folder, .gguf file or hub name of the checkpoint; 'default' is the model that ships with quire."
    )
    tokenizer: str | None = setting(
        None, "Folder or hub name of the tokenizer (and chat template), if it is not the model's own."
    )
    revision: str | None = setting(None, "Branch, tag or commit on the hub.")
    dtype: Dtype = setting("auto", "Type of weights and activations; auto takes the checkpoint's, if the device can.")
    quantization: Quantization | None = setting(
        None,
        "Quantize weights of full precision while they load: int8 or fp8 with a scale per row, int4 with one per 128 "
        "inputs, nvfp4, mxfp4 (heads keep 8 bits); or the format of a quantized checkpoint, which is found anyway.",
        short="q",
    )
    max_model_len: int | None = setting(None, "Longest prompt plus output in tokens; unset fits itself to the memory.")
    load_format: LoadFormat = setting("auto", "auto and safetensors read the files; dummy makes random weights.")
    seed: int = setting(0, "Seed of dummy weights and of requests that bring none.")
    generation_config: Literal["auto", "none"] = setting(
        "auto", "Take sampling defaults from the checkpoint's generation_config.json, or not."
    )
    runner: Runner = setting(
        "auto", "What the model is for: generate text, or pooling (vectors, scores); auto goes by the checkpoint."
    )
    pooling: Method | None = setting(
        None, "How tokens become one vector (cls, last, mean), instead of the checkpoint's own way."
    )
    model_impl: Implementation = setting(
        "auto",
        "Whose code computes the model: quire's file of its type, or the library transformers (with "
        "quire[transformers]); auto takes quire's where there is one.",
    )
    trust_remote_code: bool = setting(
        False, "Run Python code that came with the checkpoint, where transformers does not know the model otherwise."
    )
    hf_overrides: dict[str, Any] | None = setting(
        None, "JSON object of fields that replace those of config.json; objects in it are merged."
    )
    max_logprobs: int = setting(20, "Most logprobs that a request may ask for per token.")
    allow_long_max_model_len: bool = setting(False, "Permit max_model_len beyond what the model was made for.")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """Memory of past tokens."""

    block_size: int | None = setting(None, "Tokens per page; unset takes the platform's (16 on CPUs, 64 on GPUs).")
    kv_cache_dtype: KVCacheDtype = setting(
        "auto", "Type of keys and values in pages: auto is the model's; fp8 (the same as fp8_e4m3) halves bfloat16's."
    )
    gpu_memory_utilization: float = setting(0.9, "Share of a GPU's memory that the engine may take.")
    cpu_memory_utilization: float = setting(0.3, "Share of the machine's free memory that pages may take on a CPU.")
    kv_cache_memory_bytes: int | None = setting(None, "Bytes for pages, instead of a share of the memory.")
    num_gpu_blocks_override: int | None = setting(None, "Exactly so many pages per cache group, for tests.")
    enable_prefix_caching: bool = setting(True, "Reuse pages of prompts that begin alike.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Who runs, and how much per step."""

    max_num_seqs: int | None = setting(
        None, "Most sequences that run at once; unset is 64 on CPUs, 256 on GPUs, 1024 from 64 GiB."
    )
    max_num_batched_tokens: int | None = setting(
        None, "Most tokens per step; unset is 256 on CPUs (offline 1024), 8192 on GPUs, 16384 offline from 64 GiB."
    )
    scheduling_policy: Policy = setting(
        "fcfs", "Order of waiting requests: arrival, priority, or longest prefix hit (lpm)."
    )
    async_scheduling: bool | None = setting(
        None, "Plan the next step while the device computes; unset: on with GPUs, off on CPUs."
    )
    max_preemptions: int = setting(8, "After so many preemptions a sequence is pinned and runs to its end.")
    itl_target_ms: float | None = setting(
        None, "Milliseconds between tokens of running streams: prompts are cut so that steps stay within it."
    )
    watermark: float = setting(0.01, "Share of pages kept free when a request is admitted beside running ones.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelConfig:
    """How many devices share the model."""

    tensor_parallel_size: int = setting(1, "Ranks that every layer is cut over.", short="tp")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    """Where it runs."""

    device: str = setting("auto", "auto, cpu, cuda, cuda:N, xpu, or a GPU's UUID.")
    kernels: str = setting("auto", "auto, or one provider: reference (plain PyTorch, never Triton), torch_native, ...")
    enforce_eager: bool = setting(False, "Never record decode steps as graphs; saves memory and start-up time.")
    deterministic: bool = setting(
        False,
        "Give a request the same tokens and log-probabilities, to the last bit, alone and in any batch; slower "
        "(VLLM_BATCH_INVARIANT=1 says the same).",
    )
    threads: int | None = setting(None, "CPU threads for computing; unset leaves it to torch.")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """What is said, and where."""

    log_level: LogLevel = setting("info", "Least severity that is logged.")
    log_format: Literal["text", "json"] = setting("text", "Lines for people, or one JSON object per line.")
    event_log: str | None = setting(None, "File that records every scheduling event, for exact replay.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The HTTP server."""

    host: str = setting("127.0.0.1", "Address to listen on; the default is reachable from this machine only.")
    port: int = setting(8000, "Port to listen on; 0 picks a free one.")
    uds: str | None = setting(None, "Unix socket to listen on, instead of host and port; only its owner may connect.")
    ssl_certfile: str | None = setting(None, "File with the server's certificate chain (PEM): serve HTTPS.")
    ssl_keyfile: str | None = setting(None, "File with its private key (PEM), if ssl_certfile does not hold it.")
    ssl_ca_certs: str | None = setting(
        None, "File with authorities (PEM): only clients with certificates of theirs may ask."
    )
    root_path: str = setting("", "Path under which a proxy in front shows this server, such as /llm.")
    allowed_origins: str = setting("", "Origins whose pages may call from a browser, by commas; * is every origin.")
    api_key: str | None = setting(None, "Key that clients must send as 'Authorization: Bearer KEY'.", secret=True)
    api_key_file: str | None = setting(
        None, "YAML list of keys, each a text or {key, name, priority}; only keys with priority: true may set it."
    )
    allow_unauthenticated: bool = setting(
        False, "Serve without a key where other machines can reach the server: anybody on the network may ask."
    )
    api_server_count: int = setting(
        1, "Processes that answer HTTP for the one engine; more than one where a single one is short of processor time."
    )
    served_model_name: str | None = setting(None, "Name of the model in the API; unset is the name of the checkpoint.")
    chat_template: str | None = setting(None, "File with a Jinja chat template, instead of the checkpoint's.")
    tool_call_parser: str | None = setting(
        None, "How the model writes tool calls (hermes, mistral, ..., none); unset tells it from the chat template."
    )
    reasoning_parser: str | None = setting(
        None, "How the model marks its reasoning (think, ..., none); unset tells it from the chat template."
    )
    max_body_bytes: int = setting(32 << 20, "Largest request body in bytes.")
    max_queued_requests: int = setting(1024, "Requests waiting beyond this number are refused with 503.")
    max_queued_tokens: int = setting(8 << 20, "Tokens of prompts that may be open at a time; beyond, 503.")
    response_store_bytes: int = setting(64 << 20, "Bytes of responses kept in memory for /v1/responses; 0 keeps none.")
    shutdown_timeout_s: float = setting(30.0, "Seconds that running requests get after SIGTERM.")
    stall_timeout_s: float = setting(
        30.0, "Seconds without progress after which the engine counts as hung and is restarted."
    )
    load_timeout_s: float = setting(
        600.0, "Seconds without progress after which an engine that loads counts as hung and is restarted."
    )
    stream_write_timeout_s: float = setting(60.0, "Seconds after which a client that does not read is disconnected.")
    otlp_traces_endpoint: str | None = setting(
        None, "Where traces go (OTLP over HTTP, such as http://localhost:4318/v1/traces); needs quire[otel]."
    )
    disable_access_log: bool = setting(False, "Do not log a line per HTTP request.")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Everything an engine is made from; what `LLM(...)` takes as keywords, by section."""

    model: ModelConfig = field(default_factory=ModelConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    log: LogConfig = field(default_factory=LogConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything `quire serve` takes: an engine and a server."""

    engine: EngineConfig = field(default_factory=EngineConfig)
    server: ServerConfig = field(default_factory=ServerConfig)


SECTIONS: dict[str, type] = {
    "model": ModelConfig,
    "cache": CacheConfig,
    "scheduler": SchedulerConfig,
    "parallel": ParallelConfig,
    "device": DeviceConfig,
    "log": LogConfig,
    "server": ServerConfig,
}


def section_of(name: str) -> tuple[str, "Field[Any]"] | None:
    """The section and field called `name` (as in `max_model_len`), or None."""
    for section, cls in SECTIONS.items():
        for f in fields(cls):
            if f.name == name:
                return section, f
    return None
