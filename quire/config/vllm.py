"""What vLLM's users write and quire does not: settings that change nothing here, settings that are not served,
and values in other words.

Only data and the rule that reads it: a script or a unit file of vLLM's starts as it is where that is harmless, and says
what to do where it is not. Called by `sources` for flags and keywords, and by the command line for the names.
"""

from collections.abc import Iterable

from quire.base.errors import ConfigError
from quire.base.logging import get_logger, warn_once

logger = get_logger(__name__)

NOTHING = ("", "none", "null", "false", "0", "0.0", "{}", "[]")
"""Values, as text in small letters, by which nothing is asked for."""


def _each(names: str, remark: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), remark)


NEEDLESS: dict[str, str] = {
    **_each("enable_auto_tool_choice enable_reasoning", "the chat template tells how calls and thoughts are written"),
    **_each("exclude_tools_when_tool_choice_none", "tool_choice none hides the tools"),
    **_each("chat_template_content_format", "the chat template tells which form of contents it reads"),
    **_each("disable_log_requests enable_log_requests max_log_len", "prompts are never logged"),
    **_each("disable_log_stats", "figures are told at /metrics, and never logged"),
    **_each("aggregate_engine_logging uvicorn_log_level", "there is one log; its level is log_level"),
    **_each("enable_prompt_tokens_details enable_server_load_tracking", "they are always told"),
    **_each("enable_request_id_headers", "every answer has x-request-id"),
    **_each("disable_fastapi_docs", "there are no such pages"),
    **_each("collect_detailed_traces show_hidden_metrics_for_version", "whatever is measured is told"),
    **_each("allowed_methods allowed_headers", "pages of allowed_origins may use the whole API"),
    **_each("enable_ssl_refresh", "a restart reads a new certificate"),
    **_each("max_num_partial_prefills max_long_partial_prefills", "prompts share a step by max_num_batched_tokens"),
    **_each("long_prefill_token_threshold scheduler_delay_factor", "prompts share a step by max_num_batched_tokens"),
    **_each("num_scheduler_steps multi_step_stream_outputs stream_interval", "tokens are sent as they come"),
    **_each("use_v2_block_manager num_lookahead_slots preemption_mode", "the scheduler has one way"),
    **_each("prefix_caching_hash_algo", "prefixes are found by their tokens"),
    **_each("swap_space", "preempted requests are computed again"),
    **_each("max_seq_len_to_capture cuda_graph_sizes cudagraph_capture_sizes", "the engine chooses what it records"),
    **_each("compilation_config optimization_level performance_mode", "there is no compiler to set up"),
    **_each("disable_custom_all_reduce disable_cascade_attn disable_async_output_proc", "the engine chooses by itself"),
    **_each("attention_backend moe_backend attention_config kernel_config", "`quire doctor` tells the kernels"),
    **_each("guided_decoding_backend structured_outputs_config", "llguidance compiles all grammars"),
    **_each("disable_frontend_multiprocessing use_tqdm_on_load tokenizer_pool_size", "the processes are what they are"),
    **_each("enable_expert_parallel", "the ranks of tensor_parallel_size share the experts in any case"),
    **_each("disable_hybrid_kv_cache_manager kv_sharing_fast_prefill", "each kind of layer has pages of its own"),
    **_each("limit_mm_per_prompt mm_processor_kwargs mm_processor_cache_gb", "only the language model is served"),
    **_each("language_model_only skip_mm_profiling media_io_kwargs", "only the language model is served"),
    **_each("allowed_local_media_path disable_mm_preprocessor_cache", "only the language model is served"),
}
"""Settings of vLLM's that change nothing here, and why."""

LORA = "LoRA adapters are not served; merge the adapter into the weights (PEFT: merge_and_unload)"
SPECULATION = "speculative decoding is not served; leave it out"
HOSTS = "one host serves a model; leave it out"
OFFLOAD = "nothing is moved to other memory; use quantization, a smaller max_model_len or tensor_parallel_size"
FAST_FILES = "quire reads the Hugging Face format with a tokenizer.json; leave it out"
CONNECTORS = "pages stay in the engine; leave it out"
PLUGINS = "no code is loaded into the server; leave it out"

REFUSED: dict[str, tuple[str, tuple[str, ...]]] = {
    "enable_chunked_prefill": ("prompts are always computed in chunks; leave it out", ("true",)),
    "task": ("say --runner generate or pooling, or leave it out: the checkpoint tells", ("auto", "generate")),
    "convert": ("say --runner pooling, or leave it out: the checkpoint tells", ("auto",)),
    "pooler_config": ("say --pooling cls, last or mean", ()),
    "override_pooler_config": ("say --pooling cls, last or mean", ()),
    "override_generation_config": ("edit generation_config.json, or let requests say it", ()),
    "pipeline_parallel_size": ("use tensor_parallel_size", ("1",)),
    "data_parallel_size": ("start a server for each, or use tensor_parallel_size", ("1",)),
    "distributed_executor_backend": (HOSTS, ("mp", "uni")),
    "nnodes": (HOSTS, ("1",)),
    **dict.fromkeys(("node_rank", "master_addr", "headless", "data_parallel_address"), (HOSTS, ())),
    "tokenizer_mode": (FAST_FILES, ("auto", "hf")),
    "config_format": (FAST_FILES, ("auto", "hf")),
    "skip_tokenizer_init": (FAST_FILES, ()),
    "tokenizer_revision": ("revision is for both; name another folder with --tokenizer", ()),
    "code_revision": ("revision is for both", ()),
    "hf_config_path": ("say --hf-overrides, or put the config.json beside the weights", ()),
    "hf_token": ("set the variable HF_TOKEN", ()),
    "download_dir": ("set the variable HF_HUB_CACHE", ()),
    "model_loader_extra_config": ("leave it out; the files are read as fast as they come", ()),
    "ignore_patterns": ("leave it out; only what is needed is fetched", ()),
    "rope_scaling": ("say --hf-overrides '{\"rope_scaling\": {...}}'", ()),
    "rope_theta": ("say --hf-overrides '{\"rope_theta\": ...}'", ()),
    "disable_sliding_window": ("lower max_model_len to the window, or leave it out", ()),
    "calculate_kv_scales": ("scales are the checkpoint's own or 1; leave it out", ()),
    "logprobs_mode": ("log-probabilities are the model's own, before any change", ("raw_logprobs",)),
    "logits_processors": ("give them to one request, in SamplingParams of LLM", ()),
    "return_tokens_as_token_ids": ("requests ask for ids with return_token_ids", ()),
    "enable_force_include_usage": ("requests ask for usage with stream_options.include_usage", ()),
    "enable_tokenizer_info_endpoint": ("/tokenize and /v1/models tell what there is", ()),
    "response_role": ("answers are the assistant's", ("assistant",)),
    "allow_credentials": ("pages send the key as a header; leave it out", ()),
    "ssl_cert_reqs": ("--ssl-ca-certs asks clients for certificates", ()),
    "log_config_file": ("say --log-level and --log-format", ()),
    "disable_uvicorn_access_log": ("say --disable-access-log", ()),
    "enable_prompt_embeds": ("prompts are texts or token ids; leave it out", ()),
    "enable_sleep_mode": ("end the process to give memory back; a start takes seconds", ()),
    **dict.fromkeys(("cpu_offload_gb", "kv_offloading_size"), (OFFLOAD, ())),
    **dict.fromkeys(("enable_lora", "lora_modules", "max_loras", "max_lora_rank"), (LORA, ())),
    **dict.fromkeys(("speculative_config", "speculative_model", "num_speculative_tokens"), (SPECULATION, ())),
    **dict.fromkeys(("kv_transfer_config", "kv_events_config"), (CONNECTORS, ())),
    **dict.fromkeys(("middleware", "tool_parser_plugin", "reasoning_parser_plugin", "worker_cls"), (PLUGINS, ())),
    **dict.fromkeys(("tool_server", "additional_config"), (PLUGINS, ())),
}
"""Settings of vLLM's that are not served: what helps instead, and values by which they ask for nothing."""

NAMES = frozenset(NEEDLESS) | frozenset(REFUSED)

SWITCHES = frozenset(
    name
    for name in NAMES
    if name.startswith(("enable_", "disable_", "exclude_", "skip_", "use_", "allow_credentials", "return_"))
) | {
    "headless",
    "multi_step_stream_outputs",
    "aggregate_engine_logging",
    "language_model_only",
    "calculate_kv_scales",
    "kv_sharing_fast_prefill",
}
"""Those whose flag takes no value."""

LISTS: dict[str, type[int] | type[str]] = {
    "cuda_graph_sizes": int,
    "cudagraph_capture_sizes": int,
    "ignore_patterns": str,
    "lora_modules": str,
}
"""Those whose flag takes several values, and their type: a model's name is no size."""

SHORT = {"pipeline_parallel_size": "pp", "data_parallel_size": "dp", "compilation_config": "O"}

SAME: dict[str, dict[str, str]] = {
    "dtype": {"half": "float16", "float": "float32"}
    | {f"torch.{name}": name for name in ("float32", "bfloat16", "float16")},
    "quantization": {"awq_marlin": "awq", "gptq_marlin": "gptq"},
    "generation_config": {"vllm": "none"},
    "model_impl": {"vllm": "quire"},
    "max_model_len": {"-1": "auto"},
    "load_format": {"bitsandbytes": "auto", "gguf": "auto"}
    | dict.fromkeys(("fastsafetensors", "runai_streamer"), "safetensors"),
}
"""Values by setting, in vLLM's words (types of torch as they print) and in quire's."""


def translated(name: str, written: object) -> object:
    """A value in quire's words."""
    return SAME.get(name, {}).get(str(written), written)


def check(name: str, written: object, label: str) -> None:
    """Accept a setting of NAMES with one warning that it changes nothing, or refuse it.

    Args:
        written: its value, as text or as Python has it.
        label: names the place, as in `parse.convert`.

    Raises ConfigError that says what to do instead.
    """
    if name in NEEDLESS:
        warn_once(logger, f"{label} changes nothing: {NEEDLESS[name]}")
        return
    remedy, idle = REFUSED[name]
    if str(written).strip().lower() not in _idle(name, idle):
        raise ConfigError(f"{label} is vLLM's: {remedy}")


def _idle(name: str, own: Iterable[str]) -> set[str]:
    # To turn something off that is always on is to ask for something.
    return {*own, "none"} if name == "enable_chunked_prefill" else {*own, *NOTHING}
