"""Families with experts against transformers, as in `test_transformers.py`, and with pages that two sequences share."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.checkpoints import make
from tests.models.driver import Driver, Sequence
from tests.models.judge import NEW, check, check_near, judge_of, judged

pytestmark = pytest.mark.torch

SHARED, PAGE = 16, 4


@dataclass(frozen=True)
class Case:
    """A checkpoint: family, and what its config changes."""

    name: str
    family: str
    changes: dict[str, Any] = field(default_factory=dict)


YARN: dict[str, Any] = {
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "mscale": 1.0,
        "mscale_all_dim": 0.7,
    }
}
LLAMA4_DENSE: dict[str, Any] = {
    "moe_layers": None,
    "interleave_moe_layer_step": 2,
    "no_rope_layers": None,
    "use_qk_norm": False,
    "attn_temperature_tuning": False,
    "num_experts_per_tok": 1,
}
CASES = [
    Case("mixtral", "mixtral"),
    Case("mixtral window", "mixtral", {"sliding_window": 7, "tie_word_embeddings": True}),
    Case("qwen2_moe", "qwen2_moe"),
    Case("qwen2_moe windows", "qwen2_moe", {"use_sliding_window": True, "sliding_window": 6, "norm_topk_prob": True}),
    Case("olmoe", "olmoe"),
    Case("olmoe no bounds", "olmoe", {"clip_qkv": None, "num_key_value_heads": 4, "norm_topk_prob": True}),
    Case("deepseek_v2", "deepseek_v2"),
    Case(
        "deepseek_v2 lite", "deepseek_v2", {"q_lora_rank": None, "topk_method": "greedy", "routed_scaling_factor": 1.0}
    ),
    Case("deepseek_v3", "deepseek_v3"),
    Case("deepseek_v3 yarn", "deepseek_v3", {"rope_interleave": False, "norm_topk_prob": False, **YARN}),
    Case("llama4", "llama4_text"),
    Case("llama4 dense in turns", "llama4_text", LLAMA4_DENSE),
    Case("gpt_oss", "gpt_oss"),
    Case("gpt_oss full attention", "gpt_oss", {"layer_types": ["full_attention"] * 3, "attention_bias": False}),
    Case("glm4_moe", "glm4_moe"),
    Case("glm4_moe one group", "glm4_moe", {"n_group": 1, "topk_group": 1, "use_qk_norm": False}),
]


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 97, (n,), generator=generator).tolist() for n in (13, 7, 21)]


def after_a_shared_beginning(driver: Driver) -> tuple[Sequence, Sequence]:
    """Two sequences computed in one step, the second over pages of the first."""
    texts = prompts()
    first = driver.begin(texts[2])
    driver.step([(first, SHARED)])
    second = driver.begin(texts[2][:SHARED] + texts[1])
    second.computed = SHARED
    second.pages = [pages[: SHARED // PAGE] for pages in first.pages]
    driver.step([(first, 3), (second, 5)])
    return first, second


def compare(case: Case, folder: Path) -> None:
    """Assert that logits and greedy tokens are those of transformers, with the reference kernels and with torch's."""
    path = make(case.family, folder, **case.changes)
    judge = judge_of(path)
    for providers in ([], ["torch_native"]):
        driver = Driver(path, PAGE, providers)
        for sequence in driver.generate(prompts(), NEW):
            check(sequence, judge)
        for sequence in after_a_shared_beginning(driver):
            got = torch.cat(sequence.logits)
            want = judged(judge, sequence.tokens)[: sequence.computed]
            check_near(got, want[-len(got) :], len(want) - len(got))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_logits_and_greedy_tokens_are_those_of_transformers(case: Case, tmp_path: Path) -> None:
    compare(case, tmp_path)
