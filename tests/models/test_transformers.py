"""Every family against transformers: tiny random checkpoints, the real loader, ragged mixed batches over pages."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.checkpoints import make
from tests.models.driver import Driver
from tests.models.judge import NEW, check, judge_of

pytestmark = pytest.mark.torch


@dataclass(frozen=True, eq=False)
class Case:
    """A checkpoint: family, what its config changes, and the engine's max_model_len where it matters."""

    name: str
    family: str
    changes: dict[str, Any] = field(default_factory=dict)
    max_model_len: int | None = None


def rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **values}}


LONGROPE: dict[str, Any] = {
    **rope(
        "longrope",
        original_max_position_embeddings=32,
        short_factor=[1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
        long_factor=[1.0, 1.5, 2.0, 3.0, 4.0, 6.0],
    ),
    "original_max_position_embeddings": 32,
}
CASES = [
    Case("llama", "llama"),
    Case("llama tied", "llama", {"tie_word_embeddings": True}),
    Case("llama biases", "llama", {"attention_bias": True, "mlp_bias": True}),
    Case("llama no grouping", "llama", {"num_key_value_heads": None, "head_dim": None}),
    Case(
        "llama3 rope",
        "llama",
        rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32),
    ),
    Case("linear rope", "llama", rope("linear", factor=2.0)),
    Case("dynamic rope", "llama", rope("dynamic", factor=2.0)),
    Case("yarn rope", "llama", rope("yarn", factor=4.0, original_max_position_embeddings=32)),
    Case("qwen2", "qwen2"),
    Case(
        "qwen2 window",
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1, "tie_word_embeddings": True},
    ),
    Case("qwen3", "qwen3"),
    Case("qwen3 tied", "qwen3", {"tie_word_embeddings": True, "attention_bias": True}),
    Case("qwen3_moe", "qwen3_moe"),
    Case("qwen3_moe every other", "qwen3_moe", {"mlp_only_layers": [], "decoder_sparse_step": 2}),
    Case("qwen3_moe plain weights", "qwen3_moe", {"norm_topk_prob": False, "num_experts_per_tok": 1}),
    Case("qwen3_moe window", "qwen3_moe", {"use_sliding_window": True, "sliding_window": 6}),
    Case("mistral", "mistral"),
    Case("mistral window", "mistral", {"sliding_window": 7}),
    Case("phi3", "phi3"),
    Case("phi3 window", "phi3", {"sliding_window": 9}),
    Case("phi3 partial rotary", "phi3", {"partial_rotary_factor": 0.5}),
    Case("phi3 longrope within", "phi3", LONGROPE, max_model_len=32),
    Case("phi3 longrope beyond", "phi3", LONGROPE, max_model_len=128),
    Case("gemma", "gemma"),
    Case("gemma2", "gemma2"),
    Case("gemma2 no caps", "gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
]
CASES += [
    Case("gemma3_text", "gemma3_text"),
    Case("gemma3_text cap", "gemma3_text", {"final_logit_softcapping": 5.0}),
    Case("granite", "granite"),
    Case("granite biases", "granite", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    Case("olmo2", "olmo2"),
    Case("glm", "glm"),
    Case("glm no biases", "glm", {"attention_bias": False, **rope("default", partial_rotary_factor=1.0)}),
    Case("glm4", "glm4"),
    Case("smollm3", "smollm3"),
    Case("smollm3 window", "smollm3", {"use_sliding_window": True, "sliding_window": 7, "layer_types": None}),
    Case("ministral", "ministral"),
    Case("ministral3", "ministral3"),
    Case("ministral3 window", "ministral3", {"sliding_window": 9}),
    Case("seed_oss", "seed_oss"),
    Case("seed_oss other biases", "seed_oss", {"attention_bias": False, "attention_out_bias": True, "mlp_bias": True}),
    Case("starcoder2", "starcoder2"),
    Case("starcoder2 no biases", "starcoder2", {"use_bias": False, "tie_word_embeddings": False}),
    Case("cohere", "cohere"),
    Case("cohere plus", "cohere", {"use_qk_norm": True, "attention_bias": True}),
    Case("cohere2", "cohere2"),
    Case("gpt2", "gpt2"),
    Case("gpt2 untied", "gpt2", {"n_inner": 40, "tie_word_embeddings": False}),
    Case("gpt_neox", "gpt_neox"),
    Case("gpt_neox one after the other", "gpt_neox", {"use_parallel_residual": False, "attention_bias": False}),
    Case("opt", "opt"),
    Case("opt no biases", "opt", {"enable_bias": False}),
    Case("opt 350m", "opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 20}),
    Case("falcon", "falcon"),
    Case("falcon new", "falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 40}),
    Case(
        "falcon one norm",
        "falcon",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1, "bias": True},
    ),
    Case("falcon one after the other", "falcon", {"multi_query": False, "parallel_attn": False}),
    Case("phi", "phi"),
    Case("olmo", "olmo"),
    Case("stablelm", "stablelm"),
    Case("stablelm parallel", "stablelm", {"use_parallel_residual": True, "use_qkv_bias": True}),
]
PROMPTS = {"within": (13, 7, 21), "beyond": (40, 34, 51)}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Path]:
    """The checkpoint of a case, made when it is first wanted."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return cache(lambda case: make(case.family, folder / case.name.replace(" ", "-"), **case.changes))


def prompts(case: Case) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    lengths = PROMPTS["beyond" if case.max_model_len == 128 else "within"]
    return [torch.randint(3, 97, (n,), generator=generator).tolist() for n in lengths]


@pytest.mark.parametrize("providers", [[], ["torch_native"]], ids=["reference", "torch_native"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_logits_and_greedy_tokens_are_those_of_transformers(
    case: Case, providers: list[str], checkpoints: Callable[[Case], Path]
) -> None:
    path = checkpoints(case)
    judge = judge_of(path)
    driver = Driver(path, 4, providers, max_model_len=case.max_model_len)
    for sequence in driver.generate(prompts(case), NEW):
        check(sequence, judge)


@pytest.mark.parametrize("page_size", [1, 3, 16])
@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral window"])
def test_the_page_size_changes_nothing(name: str, page_size: int, checkpoints: Callable[[Case], Path]) -> None:
    case = next(case for case in CASES if case.name == name)
    path = checkpoints(case)
    want = [sequence.tokens for sequence in Driver(path, 4).generate(prompts(case), NEW)]
    for providers in ([], ["torch_native"]):
        driver = Driver(path, page_size, providers, pages=130)
        assert [sequence.tokens for sequence in driver.generate(prompts(case), NEW)] == want
