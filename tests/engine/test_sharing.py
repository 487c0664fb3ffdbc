"""Reading what sequences share once changes no token: greedy tokens equal transformers, in float32."""

import random

import pytest

from quire import LLM, SamplingParams
from quire.scheduler.scheduler import Scheduler
from tests.engine.settings import shared_early
from tests.engine.test_equality import VOCAB, transformers_greedy
from tests.models.checkpoints import make
from tests.tokenizer.samples import make_byte_bpe

pytestmark = pytest.mark.torch

SETTINGS = {
    "plain": {},
    "overlapped, chunks of 7": {"async_scheduling": True, "max_num_batched_tokens": 7},
    "preempting": {"num_gpu_blocks_override": 24, "max_model_len": 56, "async_scheduling": True},
    "the platform's kernels": {"kernels": "auto"},
}


@pytest.fixture(scope="module", params=["qwen3", "gemma2"])
def family(request, tmp_path_factory):
    """A checkpoint (one has windows and bounded scores), two groups of prompts that begin alike, and others."""
    folder = make(request.param, tmp_path_factory.mktemp(request.param))
    make_byte_bpe(folder)
    rng = random.Random(4)
    heads = [[rng.randrange(3, VOCAB) for _ in range(n)] for n in (24, 17)]
    prompts = [[*heads[i % 2], 5 + i] for i in range(6)] + [[*heads[0], 90, 91, 92, 93], [7, 8], heads[1]]
    return str(folder), prompts, transformers_greedy(folder, prompts)


@pytest.mark.parametrize("name", SETTINGS)
def test_tokens_equal_transformers(family, name, monkeypatch):
    folder, prompts, expected = family
    told = []

    class Watched(Scheduler):
        def plan(self, now):
            plan = super().plan(now)
            told.extend(group for groups in (plan.shared if plan else None) or [] for group in groups)
            return plan

    shared_early(monkeypatch, Watched)
    given = {"num_gpu_blocks_override": 200, "block_size": 4, "dtype": "float32", "kernels": "torch_native"}
    params = [SamplingParams(temperature=0.0, max_tokens=12 - i % 4, ignore_eos=True) for i in range(len(prompts))]
    with LLM(folder, max_num_seqs=8, **(given | SETTINGS[name])) as llm:
        outputs = llm.generate(prompts, params)
        preemptions = llm._running().scheduler.stats().preemptions
    for output, (tokens, _), p in zip(outputs, expected, params, strict=True):
        assert output.outputs[0].token_ids == tokens[: p.max_tokens]
    assert any(len(group.rows) >= 3 and group.pages >= 4 for group in told), "nobody was told to share"
    assert (preemptions > 0) == (name == "preempting")
