"""`deterministic`: tokens and log-probabilities are the same to the last bit, alone and in any company (N4)."""

import random

import pytest

from quire import LLM, RequestOutput, SamplingParams
from quire.base.errors import ConfigError
from quire.platforms import native
from tests.marks import need_dtype
from tests.models.checkpoints import make
from tests.tokenizer.samples import make_byte_bpe

pytestmark = pytest.mark.torch

VOCAB = 97
COMPANY = {
    "chunks": {"max_num_batched_tokens": 5, "max_num_seqs": 4, "num_gpu_blocks_override": 200},
    "preempting": {"num_gpu_blocks_override": 18, "async_scheduling": True},
}
PACKED = {"hidden_size": 64, "moe_intermediate_size": 32}
CASES = [
    ("llama", "float32", "auto", {}),
    ("qwen3", "bfloat16", "auto", {}),
    ("qwen3_moe", "float32", "auto", PACKED),
    ("qwen2_moe", "float32", "auto", PACKED),
    ("starcoder2", "bfloat16", "auto", {}),
    ("gpt_oss", "float32", "auto", {"hidden_size": 64, "intermediate_size": 32}),
    ("qwen2", "float32", "torch_native", {}),
    ("llama", "float32", "reference", {}),
]


def bits(output: RequestOutput) -> object:
    """All that an answer says, log-probabilities as they are."""
    entries = [*output.outputs[0].logprobs, *(output.prompt_logprobs or ())]
    return output.outputs[0].token_ids, [entry and {i: one.logprob for i, one in entry.items()} for entry in entries]


def asked() -> tuple[list[list[int]], list[SamplingParams]]:
    """Prompts, some of which begin alike; greedy and by seeds."""
    rng = random.Random(3)
    head = [rng.randrange(3, VOCAB) for _ in range(20)]
    prompts = [[rng.randrange(3, VOCAB) for _ in range(n)] for n in (1, 7, 30, 23)] + [[*head, 5], [*head, 6, 7], head]
    base = {"max_tokens": 12, "ignore_eos": True, "logprobs": 3}
    return prompts, [
        SamplingParams(temperature=i % 2, seed=i, prompt_logprobs=None if i % 3 else 1, **base)
        for i in range(len(prompts))
    ]


@pytest.mark.parametrize(
    ("family", "dtype", "kernels", "overrides"), CASES, ids=[f"{c[0]}-{c[1]}-{c[2]}" for c in CASES]
)
def test_company_changes_no_bit(family, dtype, kernels, overrides, tmp_path):
    if kernels == "auto" and not native.is_built():
        pytest.skip("without the native kernels it is the same as with torch_native")
    need_dtype(dtype)
    folder = make(family, tmp_path, **overrides)
    make_byte_bpe(folder)
    prompts, params = asked()
    settings = {"dtype": dtype, "kernels": kernels, "deterministic": True, "block_size": 4, "max_model_len": 64}
    with LLM(str(folder), num_gpu_blocks_override=200, enable_prefix_caching=False, **settings) as llm:
        alone = [bits(llm.generate([prompt], one)[0]) for prompt, one in zip(prompts, params, strict=True)]
    for name, company in COMPANY.items():
        with LLM(str(folder), **settings, **company) as llm:
            outputs = llm.generate(prompts, params)
            preemptions = llm._running().scheduler.stats().preemptions
        assert [bits(output) for output in outputs] == alone, name
        assert preemptions or name != "preempting"


GAP = 0.1
"""What rounding may change a log-probability by, in bfloat16: docs/reliability.md states it."""


def test_without_it_company_changes_only_what_was_nearly_equal():
    need_dtype("bfloat16")
    rng = random.Random(4)
    prompts = [[rng.randrange(300, 4000) for _ in range(rng.choice((3, 17, 40)))] for _ in range(10)]
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, logprobs=2)
    with LLM(dtype="bfloat16", kernels="torch_native", num_gpu_blocks_override=300, max_num_batched_tokens=20) as llm:
        alone = [llm.generate([prompt], params)[0].outputs[0] for prompt in prompts]
        crowd = [output.outputs[0] for output in llm.generate(prompts, params)]
    for one, other in zip(alone, crowd, strict=True):
        pairs = zip(one.token_ids, other.token_ids, one.logprobs, strict=True)
        entry = next((entry for a, b, entry in pairs if a != b), None)
        if entry is not None:
            best, second = sorted((found.logprob for found in entry.values()), reverse=True)[:2]
            assert best - second < GAP


def test_what_cannot_be_had_is_refused(tmp_path):
    folder = make("granitemoehybrid", tmp_path)
    make_byte_bpe(folder)
    with pytest.raises(ConfigError, match=r"deterministic: nothing computes .* the same way in every batch"):
        LLM(str(folder), deterministic=True, dtype="float32", num_gpu_blocks_override=20)
    with pytest.raises(ConfigError, match="transformers"):
        LLM(str(folder), deterministic=True, dtype="float32", num_gpu_blocks_override=20, model_impl="transformers")
