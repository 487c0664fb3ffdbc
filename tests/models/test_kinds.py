"""Passes through a few layers of a model call the ops that passes through all of them call, with the like of it."""

import json
from dataclasses import fields, is_dataclass, replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quire.layers.build import Build
from quire.layers.decoder import Decoder
from quire.layers.kinds import fewest, kind_of
from quire.ops.norm import NormSpec, rms_norm
from quire.ops.registry import Choice, choose
from quire.ops.samples import step_over
from quire.ops.step import StepInputs
from tests.models.driver import Driver
from tests.models.families import BASE, FAMILY

pytestmark = pytest.mark.torch
DEPTHS = ("n_layer", "num_hidden_layers")


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=30))
def test_what_follows_each_other_anywhere_does_so_among_the_fewest(letters):
    kinds = [(letter,) for letter in letters]
    kept = fewest(kinds)
    assert kept == sorted(set(kept)) and kept[0] == 0 and kept[-1] == len(kinds) - 1
    pairs = set(pairwise(kinds))
    assert pairs <= set(pairwise([kinds[i] for i in kept]))
    assert len(kept) <= 2 * len(pairs) + 2


def test_layers_that_are_all_alike_are_three():
    assert fewest([("a",)] * 28) == [0, 1, 27]


def like(value):
    """What a kernel could be made for, of an argument; the step is the same for all."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.stride()
    if is_dataclass(value) and not isinstance(value, StepInputs):
        return type(value), [like(getattr(value, field.name)) for field in fields(value)]
    return value if isinstance(value, str | bool | int | None) else type(value)


class Noting(Build):
    """Notes each call of an op."""

    calls: list[object]

    def choose(self, op, spec, last=None):
        choice = super().choose(op, spec, last)

        def noted(*given):
            call = (op.name, choice.provider, spec, [like(value) for value in given])
            if call not in self.calls:
                self.calls.append(call)
            return choice.function(*given)

        return replace(choice, function=noted)


def deepened(config):
    """With more layers like the first on both sides of the others; so are lists and words that speak of each."""
    depths = {name: config[name] for name in DEPTHS if name in config}
    count = min(depths.values(), default=len(config.get("layers_block_type", "")))
    longer = {
        name: value[:1] * 3 + value + value[:1] * 2
        for name, value in config.items()
        if isinstance(value, list | str) and len(value) == count and name != "model_type"
    }
    return {**config, **longer, **dict.fromkeys(depths, count + 5)}


class Layer(torch.nn.Module):
    """One of a kind, but for what a test changes."""

    def __init__(self, inner=torch.nn.Linear, dtype=torch.float32, sizes=(4, 2), bias=True):
        super().__init__()
        self.inner = inner(*sizes, dtype=dtype, bias=bias)


class Other(torch.nn.Linear):
    """Computes something else of weights like those of `Linear`."""


CHOICE = Choice("rms_norm", "triton", lambda: None, {}, spec=NormSpec(4, 1e-6, 0.0, "float32", "cpu"))


def test_layers_are_alike_whatever_their_weights_hold():
    assert kind_of(Layer(), [CHOICE]) == kind_of(Layer(), [replace(CHOICE, function=lambda: 1)])


@pytest.mark.parametrize(
    ("layer", "choices"),
    [
        (Layer(inner=Other), [CHOICE]),
        (Layer(dtype=torch.bfloat16), [CHOICE]),
        (Layer(sizes=(2, 4)), [CHOICE]),
        (Layer(bias=False), [CHOICE]),
        (Layer(), [CHOICE, CHOICE]),
        (Layer(), [replace(CHOICE, provider="reference")]),
        (Layer(), [replace(CHOICE, op="layer_norm")]),
        (Layer(), [replace(CHOICE, spec=replace(CHOICE.spec, offset=1.0))]),
    ],
    ids=["module", "dtype", "shape", "bias", "ops", "provider", "op", "spec"],
)
def test_layers_that_take_other_kernels_are_not_alike(layer, choices):
    assert kind_of(layer, choices) != kind_of(Layer(), [CHOICE])


def test_a_choice_says_what_it_was_made_for():
    assert choose(rms_norm, CHOICE.spec, []).spec is CHOICE.spec


@pytest.mark.parametrize("name", FAMILY)
def test_few_layers_call_what_all_call(name, tmp_path, monkeypatch):
    config = deepened({key: value for key, value in {**BASE, **FAMILY[name]}.items() if value is not ...})
    config |= {"model_type": name, "dtype": "float32", "architectures": ["AnyForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("tests.models.driver.Build", Noting)
    monkeypatch.setattr(Noting, "calls", [], raising=False)
    driver = Driver(tmp_path, 16, seed=1)
    model = driver.model
    assert isinstance(model, Decoder)
    steps = [step_over(counts, counts, [[1], [2], [3]], 16) for counts in ([1, 1, 1], [9, 1, 4])]
    steps += [replace(steps[1], ends=3)]

    def run():
        Noting.calls = []
        with torch.inference_mode():
            for step in steps:
                model(replace(step, groups=step.groups * len(driver.groups), derived={}))
        return Noting.calls, len(model._layers)

    every, depth = run()
    with model.abridged():
        few, kept = run()
    assert len(every) == len(few) and all(call in few for call in every)
    assert kept < depth == run()[1]
    with model.abridged():
        with model.abridged():
            assert run()[1] == kept
        assert run()[1] == kept, "who is within another forgot it"
