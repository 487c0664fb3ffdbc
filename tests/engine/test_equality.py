"""Greedy tokens equal transformers, in float32, with and without every feature; so do log-probabilities.

Tiny random checkpoints of every family go through the real loader, scheduler, rows, pages and sampler.
"""

import random
from functools import cache

import pytest
import torch
from transformers import AutoModelForCausalLM

from quire import LLM, SamplingParams
from tests.models.checkpoints import FAMILY, make
from tests.tokenizer.samples import make_byte_bpe

pytestmark = pytest.mark.torch

VOCAB = 97
NEW_TOKENS = 12
SETTINGS = {
    "plain": {},
    "reference kernels": {"kernels": "reference"},
    "chunks of 5": {"max_num_batched_tokens": 5, "max_num_seqs": 4},
    "overlapped": {"async_scheduling": True},
    "preempting": {"num_gpu_blocks_override": 15, "max_model_len": 56, "async_scheduling": True},
    "pages of 3": {"block_size": 3, "num_gpu_blocks_override": 300},
}


THOROUGH = ["llama", "gemma2", "qwen3_moe", "qwen3_5_text", "granitemoehybrid"]
# Pages, windows, experts and both kinds of states: what a setting changes has nothing else to do with the family. The
# others are held to one setting that cuts, shares and mixes.
PAIRS = [(family, name) for family in THOROUGH for name in SETTINGS]
PAIRS += [(family, "chunks of 5") for family in FAMILY if family not in THOROUGH]


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """Makes, once: a checkpoint folder, ragged prompts with shared beginnings, and what transformers makes of them."""

    def made(family):
        folder = make(family, tmp_path_factory.mktemp(family))
        make_byte_bpe(folder)
        rng = random.Random(3)
        head = [rng.randrange(3, VOCAB) for _ in range(20)]
        prompts = [[rng.randrange(3, VOCAB) for _ in range(n)] for n in (1, 7, 30, 17)]
        prompts += [[*head, 5], [*head, 6, 7], head]
        return str(folder), prompts, transformers_greedy(folder, prompts)

    return cache(made)


def transformers_greedy(folder, prompts):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        for _ in range(NEW_TOKENS):
            with torch.inference_mode():
                logits = model(ids).logits[0, -1]
            ids = torch.cat([ids, logits.argmax().view(1, 1)], dim=1)
        with torch.inference_mode():
            logprobs = model(ids).logits[0].log_softmax(-1)
        expected.append((ids[0, len(prompt) :].tolist(), logprobs))
    return expected


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_tokens_equal_transformers(families, family, name):
    folder, prompts, expected = families(family)
    settings = {"num_gpu_blocks_override": 200, "block_size": 4, "dtype": "float32", **SETTINGS[name]}
    params = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)
    with LLM(folder, **settings) as llm:
        first = llm.generate(prompts, params)
        again = llm.generate(prompts, params)
        stats = llm._running().scheduler.stats()
    for output, repeated, (tokens, _) in zip(first, again, expected, strict=True):
        assert output.outputs[0].token_ids == tokens
        assert repeated.outputs[0].token_ids == tokens
    assert stats.prefix_hits > 0, "shared beginnings must be read from the cache"
    if name == "preempting":
        assert stats.preemptions > 0


@pytest.mark.parametrize("family", THOROUGH)
def test_logprobs_equal_transformers(families, family):
    folder, prompts, expected = families(family)
    params = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=3, prompt_logprobs=2)
    with LLM(folder, num_gpu_blocks_override=200, block_size=4, dtype="float32", max_num_batched_tokens=9) as llm:
        outputs = llm.generate(prompts, params)
    for prompt, output, (tokens, reference) in zip(prompts, outputs, expected, strict=True):
        sequence = prompt + tokens
        assert output.prompt_logprobs is not None and output.prompt_logprobs[0] is None
        assert len(output.prompt_logprobs) == len(prompt)
        entries = output.prompt_logprobs[1:] + output.outputs[0].logprobs
        assert len(entries) == len(sequence) - 1
        for position, entry in enumerate(entries):
            row = reference[position]
            chosen = entry[sequence[position + 1]]
            assert chosen.logprob == pytest.approx(row[sequence[position + 1]].item(), abs=1e-4)
            for token, logprob in entry.items():
                assert logprob.logprob == pytest.approx(row[token].item(), abs=1e-4)
            best = max(entry.items(), key=lambda item: item[1].logprob)
            assert best[1].logprob == pytest.approx(row.max().item(), abs=1e-4)
        total = sum(entry[token].logprob for entry, token in zip(output.outputs[0].logprobs, tokens, strict=True))
        assert output.outputs[0].cumulative_logprob == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("overlapped", [False, True])
def test_a_seed_fixes_the_result_whatever_the_batch(families, family, overlapped):
    folder, prompts, _ = families(family)
    settings = {"num_gpu_blocks_override": 200, "block_size": 4, "dtype": "float32", "kernels": "reference"}
    params = SamplingParams(temperature=1.0, top_p=0.9, max_tokens=NEW_TOKENS, ignore_eos=True, seed=11, n=2)
    noise = SamplingParams(temperature=1.3, max_tokens=7, ignore_eos=True, repetition_penalty=1.2)
    with LLM(folder, async_scheduling=overlapped, **settings) as llm:
        alone = [llm.generate([prompt], params)[0] for prompt in prompts]
        mixed = llm.generate(prompts + prompts, [params] * len(prompts) + [noise] * len(prompts))[: len(prompts)]
    for one, other in zip(alone, mixed, strict=True):
        assert [c.token_ids for c in one.outputs] == [c.token_ids for c in other.outputs]
        assert one.outputs[0].token_ids != one.outputs[1].token_ids
