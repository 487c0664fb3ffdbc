"""Pages of other dtypes than the model's: how many there are, what they cost in quality, and that every way to fill and
read them gives the same tokens. On the model that ships with quire.
"""

import math

import pytest

from quire import LLM, SamplingParams

pytestmark = pytest.mark.torch

TEXT = (
    "The old house stood at the end of a narrow lane, and nobody in the village could remember who had built it. "
    "Mr. Harding had bought it in the spring, when the garden was full of weeds and the roof let in the rain; by the "
    "autumn he had mended the roof, but the weeds had won. 'I shall never be a gardener,' said he to his sister, who "
    "had come down from London to see what he had done with their father's money. 'You will never be anything,' said "
    "she, 'if you do not begin with one thing and finish it.' He laughed, and poured her another cup of tea."
)
PROMPTS = [TEXT[: 40 * (i + 1)] for i in range(6)]
SMALL = {"dtype": "float32", "num_gpu_blocks_override": 200, "max_model_len": 400}


def perplexity(kept: str) -> float:
    """Of `TEXT`, with keys and values kept in `kept`, in chunks, so that most of them are read from pages."""
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
    with LLM(kv_cache_dtype=kept, max_num_batched_tokens=16, max_num_seqs=4, **SMALL) as llm:
        (output,) = llm.generate([TEXT], params, use_tqdm=False)
    found = [next(iter(entry.values())).logprob for entry in output.prompt_logprobs[1:]]
    assert len(found) > 100
    return math.exp(-sum(found) / len(found))


def test_eight_bits_cost_less_than_a_hundredth_of_perplexity():
    exact = perplexity("auto")
    for kept, most in (("fp8", 0.01), ("fp8_e5m2", 0.02), ("bfloat16", 0.002)):
        found = perplexity(kept)
        assert abs(found / exact - 1) < most, kept
        assert found != exact, "nothing was rounded"


def pages(kept: str) -> int:
    with LLM(dtype="float32", kv_cache_dtype=kept, kv_cache_memory_bytes=16 << 20, max_model_len=128) as llm:
        facts = llm.facts
        (group,) = facts.layout.groups
        assert group.spec.bytes_per_token * group.layers * group.page_size * group.pages <= 16 << 20
        return group.pages


def test_half_the_bits_give_twice_the_pages():
    counts = {kept: pages(kept) for kept in ("auto", "bfloat16", "fp8", "fp8_e5m2")}
    assert abs(counts["bfloat16"] - 2 * counts["auto"]) <= 1
    assert abs(counts["fp8"] - 2 * counts["bfloat16"]) <= 1
    assert counts["fp8_e5m2"] == counts["fp8"]


def greedy(**settings) -> list[list[int]]:
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    with LLM(kv_cache_dtype="fp8", **{**SMALL, **settings}) as llm:
        first, again = (llm.generate(PROMPTS, params, use_tqdm=False) for _ in range(2))
    tokens = [output.outputs[0].token_ids for output in first]
    assert [output.outputs[0].token_ids for output in again] == tokens
    return tokens


@pytest.fixture(scope="module")
def expected():
    return greedy(kernels="reference")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_num_batched_tokens": 24, "max_num_seqs": 4},
        {"num_gpu_blocks_override": 20, "max_model_len": 160, "async_scheduling": True},
        {"enable_prefix_caching": False, "block_size": 3, "num_gpu_blocks_override": 300},
    ],
    ids=str,
)
def test_tokens_do_not_depend_on_how_pages_are_filled(expected, settings):
    assert greedy(**settings) == expected
