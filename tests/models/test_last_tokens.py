"""Steps behind which only each sequence's last token is wanted: the same hidden states, whatever else is left out."""

from dataclasses import replace

import pytest
import torch

from quire.layers.blocks import Block, PreNorm
from quire.ops.samples import step_over
from quire.ops.step import StepInputs
from tests.marks import needs_native
from tests.models.checkpoints import make
from tests.models.driver import Driver

pytestmark = pytest.mark.torch

SPARE = 2
"""Lines of hidden states that are computed for nobody."""
TEXTS = [[5, 9, 17, 33, 4, 8, 15, 16, 23], [42, 7, 11], [3, 1, 4, 1, 5, 9, 2, 6]]


class Twice:
    """A model that computes every step in both ways, each on the pages as they were, and compares states and pages.

    Attributes:
        left_out: tokens of which nobody wanted the state.
    """

    def __init__(self, driver):
        self.model, self.logits, self.left_out = driver.model, driver.model.logits, 0
        self.states = driver.build.states

    def __call__(self, step: StepInputs):
        pools = [pool for state in self.states for pool in state.pools]
        before = [pool.clone() for pool in pools]
        sequences = len(step.seq_lens)
        last = self.model(replace(step, ends=sequences + SPARE, derived={}))
        assert sequences <= len(last) <= sequences + SPARE
        last = last[:sequences]
        written = [pool.clone() for pool in pools]
        for pool, old in zip(pools, before, strict=True):
            pool.copy_(old)
        every = self.model(step)
        torch.testing.assert_close(written, pools, rtol=1e-4, atol=1e-5, equal_nan=True)
        computed = step.query_start.diff() > 0
        ends = step.query_start[1:].long() - 1
        torch.testing.assert_close(last[computed], every[ends[computed]], rtol=1e-4, atol=1e-5)
        self.left_out += len(every) - len(last)
        return every


@pytest.mark.parametrize("providers", [[], ["torch_native"]], ids=["reference", "torch"])
@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "qwen3_next", "gpt_oss", "gemma2", "deepseek_v3"])
def test_states_of_last_tokens_are_the_same(family, providers, tmp_path):
    driver = Driver(make(family, tmp_path), 4, providers)
    driver.model = model = Twice(driver)
    driver.generate(TEXTS, 4)
    assert model.left_out > 10


@needs_native
def test_a_layer_in_one_call_leaves_out_what_nobody_wants(tmp_path, monkeypatch):
    driver = Driver(make("llama", tmp_path), 4, ["cpu", "torch_native"])
    driver.model = model = Twice(driver)
    monkeypatch.setattr(Block, "last", None)  # the way of a block that leaves nothing out
    driver.generate(TEXTS, 4)
    assert model.left_out > 10


@torch.inference_mode()
@pytest.mark.parametrize("providers", [[], ["torch_native"]], ids=["reference", "torch"])
def test_beginnings_may_be_shared_and_sequences_without_tokens(providers, tmp_path):
    driver = Driver(make("qwen3_moe", tmp_path), 4, providers)
    model = Twice(driver)
    model(replace(step_over([8], [8], [[1, 2]], 4), token_ids=torch.arange(3, 11)))
    step = step_over([2, 0, 3], [10, 0, 11], [[1, 2, 3], [], [1, 2, 4]], 4, alike=(([0, 2], 2),))
    model(replace(step, token_ids=torch.arange(20, 25)))
    assert model.left_out == 7 + 2


@pytest.fixture
def seen(monkeypatch):
    """Of how many tokens each layer computed its feed-forward part."""
    counts = []
    fed = PreNorm._fed

    def noted(self, stream):
        counts.append(len(stream.residual))
        return fed(self, stream)

    monkeypatch.setattr(PreNorm, "_fed", noted)
    return counts


def plain(folder, providers=()):
    """A model of three layers with attention, which computes every step twice."""
    layers = {"full_attention_interval": 1, "layer_types": ["full_attention"] * 3}
    driver = Driver(make("qwen3_next", folder, **layers), 4, list(providers))
    driver.model = Twice(driver)
    return driver


def test_a_layer_leaves_out_what_nobody_wants(seen, tmp_path):
    driver = plain(tmp_path)
    driver.step([(driver.begin(text), len(text)) for text in TEXTS])
    tokens = sum(map(len, TEXTS))
    assert seen == [tokens] * 2 + [3 + SPARE] + [tokens] * 3


def test_few_tokens_of_a_long_sequence_are_computed_as_ever(seen, tmp_path):
    driver = plain(tmp_path)
    text = driver.begin(list(range(3, 23)))
    driver.step([(text, 18)])
    driver.step([(text, 2)])
    assert seen == [18] * 2 + [1 + SPARE] + [18] * 3 + [2] * 6


@needs_native
def test_a_block_of_a_better_provider_is_not_cut_in_halves(seen, tmp_path):
    driver = plain(tmp_path, ["cpu", "torch_native"])
    driver.step([(driver.begin(text), len(text)) for text in TEXTS])
    assert seen == [sum(map(len, TEXTS))] * 6
