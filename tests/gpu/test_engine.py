"""The whole engine on a real GPU: fast kernels and recorded steps change no token of the reference's, in float32."""

import random
import re

import pytest

from quire import LLM, SamplingParams
from quire.messages.structured import StructuredOutputsParams

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

from quire.sampling.batch import DrawMode  # noqa: E402
from tests.runner.test_graphs import ways_of  # noqa: E402

VOCAB = 4096
GAP = 0.25
"""Between logits that bfloat16 may take for one another: two steps of it where logits are large."""


def prompts(count: int) -> list[list[int]]:
    """Ragged prompts; every third begins like the others of its kind."""
    rng = random.Random(5)
    head = [rng.randrange(300, VOCAB) for _ in range(130)]
    own = [[rng.randrange(300, VOCAB) for _ in range(rng.randint(1, 90))] for _ in range(count)]
    return [head + tokens if i % 3 == 0 else tokens for i, tokens in enumerate(own)]


def generate(given, tokens=24, **settings):
    params = [SamplingParams(temperature=0.0, max_tokens=tokens + i % 7, ignore_eos=True) for i in range(len(given))]
    options = {"device": "cuda", "dtype": "float32", "num_gpu_blocks_override": 2000, **settings}
    with LLM(**options) as llm:
        outputs = llm.generate(given, params, use_tqdm=False)
        stats = llm._running().scheduler.stats()
    return [output.outputs[0].token_ids for output in outputs], stats


@pytest.fixture(scope="module")
def expected():
    return generate(prompts(96), kernels="reference", enforce_eager=True)[0]


SETTINGS = {
    "recorded": {},
    "eager": {"enforce_eager": True},
    "not overlapped": {"async_scheduling": False},
    "one at a time": {"max_num_seqs": 1},
    "few rows": {"max_num_seqs": 5},
    "chunks mixed with decoding": {"max_num_batched_tokens": 96, "max_num_seqs": 64},
    "no prefix cache": {"enable_prefix_caching": False},
    "preempting": {"num_gpu_blocks_override": 40, "max_model_len": 512},
    "pages of 16": {"block_size": 16, "num_gpu_blocks_override": 4000},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_tokens_equal_the_reference(expected, name):
    tokens, stats = generate(prompts(96), **SETTINGS[name])
    assert tokens == expected
    if name == "preempting":
        assert stats.preemptions > 0
    assert (stats.running, stats.kv_usage) == (0, 0.0)


@pytest.mark.parametrize("count", [1, 2, 3, 17, 64, 200, 256])
def test_any_batch_equals_the_reference(count):
    given = [prompts(7)[i % 7][:40] for i in range(count)]
    tokens, _ = generate(given, tokens=6)
    alone, _ = generate(given[:7], tokens=6, kernels="reference", enforce_eager=True, max_num_seqs=1)
    for i, found in enumerate(tokens):
        assert found[:6] == alone[i % 7][:6]


def test_bfloat16_parts_from_the_reference_only_where_two_tokens_are_as_likely():
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, logprobs=2)
    found = []
    for settings in ({"kernels": "reference", "enforce_eager": True}, {}):
        with LLM(device="cuda", dtype="bfloat16", num_gpu_blocks_override=2000, **settings) as llm:
            outputs = llm.generate(prompts(96), params, use_tqdm=False)
            found.append([output.outputs[0] for output in outputs])
    for expected, got in zip(*found, strict=True):
        both = zip(expected.token_ids, got.token_ids, strict=True)
        parted = next((i for i, (one, other) in enumerate(both) if one != other), None)
        if parted is not None:
            first, second = sorted((entry.logprob for entry in expected.logprobs[parted].values()), reverse=True)[:2]
            assert first - second < GAP


DRAWS = (
    {"top_p": 0.9, "n": 2},
    {"repetition_penalty": 1.2, "presence_penalty": 0.4, "logprobs": 3},
    {"temperature": 0.0, "frequency_penalty": 0.6},
    {"logit_bias": {5: 3.0, 9: -100.0}, "top_k": 40, "logprobs": 0},
    {"min_tokens": 12, "stop_token_ids": list(range(300, 500)), "bad_words": [" the", "the"]},
)


def test_seeds_fix_samples_recorded_or_not(monkeypatch):
    params = [
        SamplingParams(max_tokens=20, ignore_eos=True, seed=i, **DRAWS[i % len(DRAWS)]) for i in range(4 * len(DRAWS))
    ]
    found, drawn = [], []
    for eager in (False, True):
        with LLM(device="cuda", dtype="float32", num_gpu_blocks_override=500, enforce_eager=eager) as llm:
            drawn.append(ways_of(llm, monkeypatch))
            # All kinds at once, and then only such whose logits nobody edits.
            outputs = llm.generate(prompts(len(params)), params, use_tqdm=False)
            outputs += llm.generate(prompts(8), params[0], use_tqdm=False)
            found.append([c for output in outputs for c in output.outputs])
    assert min(drawn[0].count(DrawMode.EDITED), drawn[0].count(DrawMode.RANDOM)) > 8
    assert not drawn[1]
    assert [c.token_ids for c in found[0]] == [c.token_ids for c in found[1]]
    for one, other in zip(*found, strict=True):
        for entry, same in zip(one.logprobs or (), other.logprobs or (), strict=True):
            assert entry.keys() == same.keys()
            assert all(abs(entry[token].logprob - same[token].logprob) < 1e-3 for token in entry)


def test_grammars_are_kept_to_recorded_or_not(monkeypatch):
    forms = [r"[a-z]{5,20}", r"[0-9]+ (cats|dogs)", None, r"(\+49|0)[1-9][0-9]{2,4} [0-9]{3,8}"]
    params = [
        SamplingParams(max_tokens=40, seed=i, structured_outputs=form and StructuredOutputsParams(regex=form))
        for i, form in enumerate(forms * 8)
    ]
    found, drawn = [], []
    for settings in ({"enforce_eager": True, "async_scheduling": False}, {}):
        with LLM(device="cuda", dtype="float32", num_gpu_blocks_override=500, **settings) as llm:
            drawn.append(ways_of(llm, monkeypatch))
            found.append([output.outputs[0] for output in llm.generate(prompts(32), params, use_tqdm=False)])
    assert not drawn[0]
    assert drawn[1].count(DrawMode.EDITED) > 4
    texts = [[answer.text for answer in answers] for answers in found]
    assert texts[0] == texts[1]
    both = zip(forms * 8, found[1], strict=True)
    ended = [(form, answer.text) for form, answer in both if form and answer.finish_reason == "stop"]
    assert ended and all(re.fullmatch(form, text) for form, text in ended)


@pytest.mark.parametrize(
    "settings", [{}, {"num_gpu_blocks_override": 130, "max_model_len": 800}, {"block_size": 16}], ids=str
)
def test_reading_once_what_sequences_share_changes_no_token(settings, monkeypatch):
    from quire.runner import rows

    monkeypatch.setattr(rows, "LEAST_SAVED", 0)
    rng = random.Random(6)
    heads = [[rng.randrange(300, VOCAB) for _ in range(n)] for n in (600, 300)]
    given = [heads[i % 2] + [rng.randrange(300, VOCAB) for _ in range(1 + i % 40)] for i in range(24)] + prompts(9)
    assert generate(given, **settings)[0] == generate(given, kernels="reference", enforce_eager=True)[0]
