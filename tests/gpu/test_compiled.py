"""Once an engine is ready, nothing compiles: neither a Triton kernel nor a plan of cuDNN's, whatever is asked of it."""

import random

import pytest

from quire import LLM, SamplingParams

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

VOCAB = 4096
SETTINGS = (
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 0.8, "top_k": 40, "min_p": 0.02},
    {"temperature": 1.0, "top_k": 3000, "top_p": 0.99, "seed": 4},
    {"temperature": 0.0, "repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.1},
    {"temperature": 0.9, "logit_bias": {5: 3.0, 9: -100.0}, "min_tokens": 3},
    {"temperature": 0.0, "logprobs": 5},
    {"temperature": 1.0, "logprobs": 0, "prompt_logprobs": 2},
    {"temperature": 0.0, "allowed_token_ids": [5, 6, 7]},
)


@pytest.fixture
def compiled(monkeypatch):
    """What has been compiled, by name: nothing yet."""
    triton = pytest.importorskip("triton")
    found = []

    @triton.jit
    def probe(x):
        pass

    def note(*, fn, **rest):
        found.append(f"{fn.name}: {rest['compile']['constants']} {rest['compile']['configs']}")

    monkeypatch.setattr(triton.knobs.runtime, "jit_post_compile_hook", note)
    probe[(1,)](torch.zeros(1, device="cuda"))
    assert found, "the hook hears nothing"
    found.clear()
    return found


def plans():
    """How many plans of cuDNN's there are."""
    from quire.kernels.cudnn import attention

    return attention._plan.cache_info().currsize


def load(count, rng, kinds=SETTINGS):
    """Requests of all kinds, with prompts of 1 to 1,500 tokens, some of which begin alike."""
    head = [rng.randrange(300, VOCAB) for _ in range(200)]
    prompts, params = [], []
    for i in range(count):
        own = [rng.randrange(300, VOCAB) for _ in range(rng.choice((1, 7, 60, 300, 1200)) + rng.randrange(60))]
        prompts.append(head + own if i % 3 == 0 else own)
        params.append(SamplingParams(max_tokens=rng.randint(1, 90), ignore_eos=True, **kinds[i % len(kinds)]))
    return prompts, params


@pytest.mark.parametrize("settings", [{}, {"kv_cache_dtype": "fp8"}, {"max_num_batched_tokens": 512}], ids=str)
def test_nothing_compiles_once_ready(compiled, settings):
    rng = random.Random(1)
    with LLM(device="cuda", max_num_seqs=48, num_gpu_blocks_override=3000, **settings) as llm:
        compiled.clear()
        made = plans()
        llm.generate(*load(160, rng), use_tqdm=False)
        for size in (1, 2, 3, 5, 11, 33):
            llm.generate(*load(size, rng), use_tqdm=False)
            llm.generate(*load(size, rng, SETTINGS[:1]), use_tqdm=False)
    assert not compiled, "\n".join(sorted(set(compiled)))
    assert plans() == made


def test_memory_is_enough_with_every_row_and_page_in_use():
    rng = random.Random(2)
    asked = {"temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.1, "logprobs": 20, "logit_bias": {9: 1.0}}
    params = SamplingParams(max_tokens=40, ignore_eos=True, **asked)
    with LLM(device="cuda", gpu_memory_utilization=0.3, max_num_seqs=256) as llm:
        longest = llm.facts.max_model_len
        prompts = [[rng.randrange(300, VOCAB) for _ in range(longest - 40)] for _ in range(300)]
        used = torch.cuda.mem_get_info()[0]
        outputs = llm.generate(prompts, params, use_tqdm=False)
        assert len(outputs) == 300
        assert used - torch.cuda.mem_get_info()[0] < 256 << 20, "steps took memory that was not set aside"
