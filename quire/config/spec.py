"""What resolving gives: `PlatformFacts` describe the device, `RunSpec` is everything decided, with no "auto" left."""

from typing import Literal

import msgspec

from quire.checkpoint.facts import Implementation, ModelFacts

PlatformName = Literal["cpu", "cuda", "rocm", "xpu"]
"""Kinds of devices; `docs/add-a-platform.md` says where else each has a line."""


class PlatformFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A device that was found, as plain values.

    Attributes:
        name: "cpu", "cuda", "rocm" or "xpu".
        device: for torch: "cpu", "cuda:0", ...; never empty.
        device_name: for people.
        arch: "sm_90", "gfx942", "avx512", "avx2", ...
        total_bytes: memory of the device (of the machine, on a CPU).
        providers: kernel folders to try, best first; the reference is implied at the end.
        refused: kernel folders that were refused, with the reason.
        dtypes: types that the device computes well, preferred first.
        page_size: tokens per page unless the user says otherwise.
        warnings: sentences for the user (an unknown architecture, a GPU that this torch cannot use).
    """

    name: PlatformName
    device: str
    device_name: str
    arch: str
    total_bytes: int
    providers: list[str]
    refused: dict[str, str]
    dtypes: list[str]
    page_size: int
    warnings: list[str] = []


class RunSpec(msgspec.Struct, frozen=True, kw_only=True):
    """An engine, fully decided before loading. What memory decides comes later, in `Layout`.

    Attributes:
        kv_cache_dtype: of keys and values in pages, as torch calls it: "bfloat16", ..., "float8_e4m3fn", "float8_e5m2".
        model_impl, trust_remote_code: whose code computes the model, and whether the checkpoint's own may.
        quantization: what matrices of full precision become while they load, or the name of the checkpoint's format;
            None takes the checkpoint as it is.
        max_model_len: wanted; `fit_max_model_len` says whether it may shrink to what fits.
        page_size: tokens per page.
        memory_fraction: share of the device's memory (of the free memory, on a CPU) for the engine.
        kv_cache_memory_bytes, num_pages: exact sizes that the user set, else None.
        depth: plans in flight: 1 plain, 2 overlapped.
        warm_tokens: step sizes that run once before the engine is ready, so that nothing compiles afterwards.
        graph_rows: batch sizes at which decode steps are recorded as graphs; empty runs every step eagerly.
        graph_singles, graph_tokens: steps with prompts are recorded for so many sequences that decode, and so many
            tokens of prompts.
        itl_target_s: seconds that a step may take while sequences stream, or None.
        watermark: share of pages kept free at admission.
        deterministic: whether a request's result must be the same to the last bit, alone and in any batch.
        notes: sentences for the user on what was decided against expectation, such as a dtype the device lacks.
    """

    facts: ModelFacts
    platform: PlatformFacts
    dtype: str
    kv_cache_dtype: str
    model_impl: Implementation
    trust_remote_code: bool
    quantization: str | None
    load_format: Literal["safetensors", "dummy"]
    seed: int
    max_model_len: int
    fit_max_model_len: bool
    page_size: int
    memory_fraction: float
    kv_cache_memory_bytes: int | None
    num_pages: int | None
    enable_prefix_caching: bool
    max_num_seqs: int
    max_num_batched_tokens: int
    policy: Literal["fcfs", "priority", "lpm"]
    depth: int
    warm_tokens: list[int]
    graph_rows: list[int]
    max_preemptions: int
    watermark: float
    itl_target_s: float | None
    max_logprobs: int
    tensor_parallel_size: int
    threads: int | None
    event_log: str | None
    graph_singles: list[int] = []
    graph_tokens: list[int] = []
    deterministic: bool = False
    notes: list[str] = []

    def recorded_tokens(self, max_len: int) -> list[int]:
        """Of `graph_tokens` those that a sequence is long enough for, where none is longer than `max_len`."""
        return [size for size in self.graph_tokens if size < max_len]
