"""Steps behind which only each sequence's last token is wanted: the same hidden states, whatever else is left out."""

from dataclasses import replace

import pytest
import torch

from quire.layers.blocks import PreNorm
from quire.ops.step import StepInputs
from tests.models.checkpoints import make
from tests.models.driver import Driver

pytestmark = pytest.mark.torch

TEXTS = [[5, 9, 17, 33, 4, 8, 15, 16, 23], [42, 7, 11], [3, 1, 4, 1, 5, 9, 2, 6]]


class Twice:
    """A model that computes every step in both ways and compares them.

    Attributes:
        left_out: tokens of which nobody wanted the state.
    """

    def __init__(self, model):
        self.model, self.logits, self.left_out = model, model.logits, 0

    def __call__(self, step: StepInputs):
        every = self.model(step)
        last = self.model(replace(step, ends=True, derived={}))
        torch.testing.assert_close(last, every[step.query_start[1:].long() - 1], rtol=1e-4, atol=1e-5)
        self.left_out += len(every) - len(last)
        return every


@pytest.mark.parametrize("providers", [[], ["torch_native"]], ids=["reference", "torch"])
@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gpt_oss", "gemma2", "deepseek_v3"])
def test_states_of_last_tokens_are_the_same(family, providers, tmp_path):
    driver = Driver(make(family, tmp_path), 4, providers)
    driver.model = model = Twice(driver.model)
    driver.generate(TEXTS, 4)
    assert model.left_out > 10


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
    driver.model = Twice(driver.model)
    return driver


def test_a_layer_leaves_out_what_nobody_wants(seen, tmp_path):
    driver = plain(tmp_path)
    driver.step([(driver.begin(text), len(text)) for text in TEXTS])
    tokens = sum(map(len, TEXTS))
    assert seen == [tokens] * 5 + [3]


def test_few_tokens_of_a_long_sequence_are_computed_as_ever(seen, tmp_path):
    driver = plain(tmp_path)
    text = driver.begin(list(range(3, 23)))
    driver.step([(text, 18)])
    driver.step([(text, 2)])
    assert seen == [18] * 5 + [1] + [2] * 6


def test_a_block_of_a_better_provider_is_not_cut_in_halves(seen, tmp_path):
    driver = plain(tmp_path, ["cpu", "torch_native"])
    driver.step([(driver.begin(text), len(text)) for text in TEXTS])
    assert seen == [sum(map(len, TEXTS))] * 6
