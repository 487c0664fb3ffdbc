"""`deterministic` on a GPU: tokens and log-probabilities are the same to the last bit, in any company (N4)."""

import random

import pytest

from quire import LLM, RequestOutput, SamplingParams

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

VOCAB = 4096
COMPANY = {
    "recorded": {},
    "chunks and preemption": {
        "max_num_batched_tokens": 96,
        "max_num_seqs": 40,
        "num_gpu_blocks_override": 24,
        "max_model_len": 512,
        "enforce_eager": True,
    },
}


def bits(output: RequestOutput) -> object:
    """All that an answer says, log-probabilities as they are."""
    entries = [*output.outputs[0].logprobs, *(output.prompt_logprobs or ())]
    return output.outputs[0].token_ids, [entry and {i: one.logprob for i, one in entry.items()} for entry in entries]


def asked() -> tuple[list[list[int]], list[SamplingParams]]:
    """Prompts, some of which begin alike; greedy and by seeds."""
    rng = random.Random(5)
    head = [rng.randrange(300, VOCAB) for _ in range(130)]
    own = [[rng.randrange(300, VOCAB) for _ in range(rng.choice((1, 5, 30, 90, 200)))] for _ in range(96)]
    prompts = [head + tokens if i % 3 == 0 else tokens for i, tokens in enumerate(own)]
    base = {"max_tokens": 40, "ignore_eos": True, "logprobs": 2}
    return prompts, [
        SamplingParams(temperature=i % 2, seed=i, prompt_logprobs=None if i % 8 else 1, **base)
        for i in range(len(prompts))
    ]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_company_changes_no_bit(dtype: str) -> None:
    prompts, params = asked()
    settings = {"device": "cuda", "dtype": dtype, "deterministic": True, "num_gpu_blocks_override": 2000}
    with LLM(**settings, enable_prefix_caching=False) as llm:
        some = range(0, len(prompts), 5)
        alone = {i: bits(llm.generate([prompts[i]], params[i], use_tqdm=False)[0]) for i in some}
    for name, company in COMPANY.items():
        with LLM(**{**settings, **company}) as llm:
            outputs = llm.generate(prompts, params, use_tqdm=False)
            preemptions = llm._running().scheduler.stats().preemptions
        different = [i for i, said in alone.items() if bits(outputs[i]) != said]
        assert not different, f"{name}: {len(different)} of {len(alone)}"
        assert preemptions or name == "recorded"
