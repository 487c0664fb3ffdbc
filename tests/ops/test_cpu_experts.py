"""Experts on packed weights of the compiled CPU kernels, on drawn shapes, for each set of instructions here."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.ops.moe import MoeBiases, MoeSpec, RouteSpec, route
from quire.ops.registry import choose, load_providers
from quire.ops.samples import normal
from quire.ops.stored import OFFERS, Bits, WeightSpec
from quire.ops.stored_moe import StoredMoeSpec, stored_moe
from tests.marks import needs_native

pytestmark = [
    pytest.mark.torch,
    needs_native,
]
DTYPES = st.sampled_from(["float32", "bfloat16"])


def packed(moe: MoeSpec, bits: Bits | None) -> tuple[StoredMoeSpec, tuple[torch.Tensor, torch.Tensor]]:
    """Experts as the kernels want them."""
    count, made, data = moe.route.experts, [], []
    for seed, (rows, inputs, parts) in enumerate(((2 * moe.inner, moe.hidden, 2), (moe.hidden, moe.inner, 1))):
        storage = OFFERS["cpu"](WeightSpec(count * rows, inputs, bits, 32, moe.dtype, "cpu", count * parts))
        assert storage is not None
        made.append(storage)
        data.append(storage.allocate())
        storage.put(data[-1], 0, normal(moe.dtype, count * rows, inputs, seed=seed + 2) / inputs**0.5)
    return StoredMoeSpec(moe, *made), (data[0], data[1])


def compare(spec: StoredMoeSpec, data: tuple[torch.Tensor, torch.Tensor], tokens: int, biases: MoeBiases) -> None:
    moe = spec.moe
    x, logits = normal(moe.dtype, tokens, moe.hidden), normal(moe.dtype, tokens, moe.route.experts, seed=1)
    want = stored_moe(x, logits, *data, spec, biases)
    got = stored_moe.providers["cpu"].function(x, logits, *data, spec, biases)
    rtol, atol = stored_moe.tolerance[moe.dtype]
    torch.testing.assert_close(got.float(), want.float(), rtol=rtol, atol=atol)
    # A token alone gets what it gets among others, to the bit.
    alone = stored_moe.providers["cpu"].function(x[:1], logits[:1], *data, spec, biases)
    assert torch.equal(alone, got[:1])


@settings(max_examples=15)
@given(
    tokens=st.integers(0, 40),
    experts=st.integers(1, 9),
    top_k=st.integers(1, 4),
    hidden=st.sampled_from([32, 96, 160]),
    inner=st.sampled_from([32, 64]),
    normalize=st.booleans(),
    dtype=DTYPES,
    bits=st.sampled_from([None, 8, 4]),
)
def test_any_shape(
    instructions: str,
    tokens: int,
    experts: int,
    top_k: int,
    hidden: int,
    inner: int,
    normalize: bool,
    dtype: str,
    bits: Bits | None,
) -> None:
    moe = MoeSpec(RouteSpec(experts, min(top_k, experts), normalize, dtype), hidden, inner, dtype)
    compare(*packed(moe, bits), tokens, MoeBiases())


@pytest.mark.parametrize("form", ["clamped", "weighed", "sigmoid"])
def test_rare_forms(instructions: str, form: str) -> None:
    plain = RouteSpec(6, 2, True)
    moe = MoeSpec(plain, 64, 32)
    biases = MoeBiases()
    if form == "clamped":
        moe = replace(moe, gate="clamped", bias=True)
        biases = MoeBiases(None, normal("float32", 6, 64, seed=4), normal("float32", 6, 64, seed=5))
    elif form == "weighed":
        moe = replace(moe, weigh_input=True)
    else:
        moe = replace(moe, route=replace(plain, score="sigmoid", bias=True, scale=2.5))
        biases = MoeBiases(normal("float32", 6, seed=9))
    compare(*packed(moe, None), 7, biases)


@given(tokens=st.integers(0, 20), experts=st.integers(1, 130), normalize=st.booleans(), dtype=DTYPES, data=st.data())
def test_the_choice_of_experts(
    instructions: str, tokens: int, experts: int, normalize: bool, dtype: str, data: st.DataObject
) -> None:
    spec = RouteSpec(experts, data.draw(st.integers(1, min(8, experts))), normalize, dtype)
    logits = normal(dtype, tokens, experts)
    want, got = route(logits, spec), route.providers["cpu"].function(logits, spec)
    assert torch.equal(got[1], want[1])
    torch.testing.assert_close(got[0], want[0])


def test_experts_that_are_no_whole_panels_are_left_to_others() -> None:
    load_providers(["cpu"])
    assert OFFERS["cpu"](WeightSpec(4 * 48, 64, None, 32, "float32", "cpu", 4)) is None
    assert OFFERS["cpu"](WeightSpec(4 * 64, 48, None, 32, "float32", "cpu", 4)) is None
    spec, _ = packed(MoeSpec(RouteSpec(4, 2, True), 64, 32), None)
    assert choose(stored_moe, spec, ["cpu"]).provider == "cpu"
    narrow = StoredMoeSpec(replace(spec.moe, inner=16), spec.gate_up, spec.down)
    assert "no multiple of 32" in choose(stored_moe, narrow, ["cpu"]).refused["cpu"]
