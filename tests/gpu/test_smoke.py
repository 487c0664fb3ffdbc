"""On a real GPU: the shipped model generates, and in float32 exactly what the CPU generates."""

import pytest

from quire import LLM, SamplingParams

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

PROMPTS = ["The old house stood on a hill, and", "She opened the letter", "In the beginning"]
GREEDY = SamplingParams(temperature=0.0, max_tokens=48, ignore_eos=True)


def generate(**settings):
    with LLM(kv_cache_memory_bytes=64 << 20, max_model_len=512, **settings) as llm:
        return [output.outputs[0].token_ids for output in llm.generate(PROMPTS, GREEDY)]


@pytest.mark.parametrize("kernels", ["reference", "auto"])
@pytest.mark.parametrize("overlapped", [False, True])
def test_float32_equals_the_cpu(kernels, overlapped):
    expected = generate(device="cpu", kernels="reference", dtype="float32")
    assert generate(device="cuda", kernels=kernels, dtype="float32", async_scheduling=overlapped) == expected


@pytest.mark.parametrize("kernels", ["reference", "auto"])
def test_bfloat16_generates(kernels):
    for ids in generate(device="cuda", kernels=kernels, dtype="bfloat16"):
        assert len(ids) == 48


def test_pages_are_sized_from_measured_memory_and_given_back():
    before = torch.cuda.mem_get_info()[0]
    with LLM(device="cuda", gpu_memory_utilization=0.3) as llm:
        groups = llm.facts.layout.groups
        pages = sum(g.pages * g.page_size * g.spec.bytes_per_token * g.layers for g in groups)
        assert pages > 0.2 * torch.cuda.mem_get_info()[1]
        llm.generate(PROMPTS, GREEDY)
    assert before - torch.cuda.mem_get_info()[0] < 1 << 30
