"""What is declared batch-invariant: a token's attention, and what experts make of it, whatever else is computed."""

import copy
import weakref
from dataclasses import replace
from typing import Any

import numpy
import pytest
import torch

from quire.kernels.batch_invariant import products
from quire.kernels.batch_invariant.products import invariant_linear, invariant_stored_linear
from quire.ops.attention import AttentionSpec, attend, paged_attention
from quire.ops.linear import LinearSpec
from quire.ops.moe import RouteSpec, moe, route, sigmoid
from quire.ops.registry import OPS, Op, load_providers
from quire.ops.samples import normal
from quire.ops.step import StepInputs
from quire.ops.stored import StoredSpec
from quire.ops.stored_moe import stored_moe
from quire.platforms import native
from quire.quantization.canonical import Canonical
from tests.ops.triton import INTERPRETER

pytestmark = pytest.mark.torch

load_providers(["batch_invariant", *(["cpu"] if native.is_built() else []), *(["triton"] if INTERPRETER else [])])
CASES = [
    (op, provider.name) for op in (attend, paged_attention) for provider in op.providers.values()
    if provider.batch_invariant
]  # fmt: skip
EXPERTS = [(op, provider.name) for op in (moe, stored_moe) for provider in op.providers.values()
           if provider.batch_invariant]  # fmt: skip


@pytest.fixture(autouse=True)
def place_matters_not(monkeypatch):
    """A tile's product is numpy's where kernels are interpreted, whose last bits depend on a row's place on some
    processors. On the matrix units of a GPU they do not.
    """
    multiply = numpy.matmul

    def exact(x, y, dtype):
        return multiply(x.astype(numpy.float64), y.astype(numpy.float64)).astype(dtype)

    monkeypatch.setattr(numpy, "matmul", exact)


FIRST = {"attend": "qkv", "paged_attention": "q"}


def last_of(step: StepInputs, index: int, count: int) -> tuple[StepInputs, slice]:
    """A step of the last `count` tokens of sequence `index` alone, and which tokens of `step` these are."""
    end = int(step.query_start[index + 1])
    cut = slice(end - count, end)
    groups = tuple(group.cut(slice(index, index + 1), cut) for group in step.groups)
    alone = replace(
        step,
        positions=step.positions[cut],
        query_start=torch.tensor([0, count], dtype=torch.int32),
        seq_lens=step.seq_lens[index : index + 1],
        groups=tuple(replace(group, shared=None) for group in groups),
        max_query=count,
        derived={},
    )
    return alone, cut


@pytest.mark.parametrize(("op", "provider"), CASES, ids=[f"{op.name}-{name}" for op, name in CASES])
def test_a_token_s_attention_is_its_own(op: Op, provider: str) -> None:
    function, compared = op.providers[provider].function, 0
    refuses = op.providers[provider].refuses
    interpreted = provider == "triton"
    for number, (spec, kwargs) in enumerate(op.samples()):
        spec: AttentionSpec = replace(spec, batch_invariant=True)
        if spec.step != "eager" or refuses(spec) is not None:
            continue
        if interpreted and (number % 3 or kwargs["step"].max_seq > 20 or spec.dtype != "float32"):
            continue  # it takes its time
        given: dict[str, Any] = copy.deepcopy(kwargs) | {"spec": spec}
        whole, step = function(**given), given["step"]
        for index, length in enumerate(step.seq_lens.tolist()):
            queries = int(step.query_start[index + 1] - step.query_start[index])
            for count in {1, queries // 2, queries} - {0} if length else ():
                part, cut = last_of(step, index, count)
                alone = function(**{**given, FIRST[op.name]: given[FIRST[op.name]][cut].contiguous(), "step": part})
                assert torch.equal(alone, whole[cut]), (spec, index, count)
                compared += 1
    assert compared > (5 if interpreted else 20)


@pytest.mark.parametrize(("op", "provider"), EXPERTS, ids=[f"{op.name}-{name}" for op, name in EXPERTS])
def test_what_experts_make_of_a_token_is_its_own(op: Op, provider: str) -> None:
    found, compared = op.providers[provider], 0
    for spec, kwargs in op.samples():
        tokens = len(kwargs["x"])
        if op is moe:
            spec = replace(spec, route=replace(spec.route, batch_invariant=True))
        else:
            spec = replace(spec, moe=replace(spec.moe, route=replace(spec.moe.route, batch_invariant=True)))
        if spec.dtype != "float32" or not 3 <= tokens < 100 or found.refuses(spec) is not None:
            continue
        whole = found.function(**{**kwargs, "spec": spec})
        for cut in (slice(0, 1), slice(tokens - 2, tokens)):
            some = {"x": kwargs["x"][cut], "logits": kwargs["logits"][cut], "spec": spec}
            assert torch.equal(found.function(**{**kwargs, **some}), whole[cut]), (spec, cut)
            compared += 1
        if provider == "triton":
            break  # the interpreter takes its time
    assert compared > (1 if provider == "triton" else 3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_s_product_is_its_own(dtype: str) -> None:
    x, weight = normal(dtype, 37, 33), normal(dtype, 21, 33, seed=1)
    spec = LinearSpec(33, 21, False, dtype)
    whole = invariant_linear(x, weight, None, spec)
    storage = Canonical(21, 33, 8, 128, dtype, "cpu")
    data = storage.allocate()
    storage.put(data, 0, weight)
    stored = invariant_stored_linear(x, data, None, StoredSpec(storage, False, dtype))
    for rows in (slice(5, 6), slice(3, 20)):
        assert torch.equal(invariant_linear(x[rows], weight, None, spec), whole[rows])
        assert torch.equal(
            invariant_stored_linear(x[rows], data, None, StoredSpec(storage, False, dtype)), stored[rows]
        )


@pytest.mark.parametrize("count", [0, 1, 64, 150])
@pytest.mark.parametrize("aligned", [True, False])
def test_tiles_have_one_size_and_are_copied_only_where_they_must_be(count: int, aligned: bool) -> None:
    memory = torch.arange(200 * 32.0)
    first = -memory.data_ptr() % products.ALIGNED // 4 + (not aligned)
    x = memory[first : first + count * 32].view(count, 32)
    copied: list[bool] = []
    made: list[weakref.ref[torch.Tensor]] = []

    def multiply(tile: torch.Tensor) -> torch.Tensor:
        assert tile.shape == (64, 32)
        assert not any(earlier() is not None for earlier in made), "one tile's results at a time"
        copied.append(tile.untyped_storage().data_ptr() != memory.data_ptr())
        result = tile[:, :3] * 2
        made.append(weakref.ref(result))
        return result

    found = products.tiled(x, multiply, 64, 3)
    assert torch.equal(found, x[:, :3] * 2)
    assert copied.count(False) == (count // 64 if aligned else 0)
    assert found.untyped_storage().nbytes() == found.nbytes, "nothing more is kept"
    assert (found is made[0]()) == (count == 64)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_sigmoid_is_the_same_wherever_it_lies(dtype: str) -> None:
    values = normal(dtype, 67, 6) * 6
    whole = sigmoid(values)
    for i in range(len(values)):
        assert torch.equal(sigmoid(values[i : i + 1].clone()), whole[i : i + 1]), i
    torch.testing.assert_close(whole, values.sigmoid())


@pytest.mark.parametrize("spec", [RouteSpec(6, 1, False, score="sigmoid"), RouteSpec(8, 2, True, score="sigmoid")])
def test_a_token_s_choice_is_its_own(spec: RouteSpec) -> None:
    logits = normal("float32", 64, spec.experts) * 3
    whole = route.reference(logits, spec)
    for i in range(len(logits)):
        alone = route.reference(logits[i : i + 1].clone(), spec)
        assert all(torch.equal(one, all_[i : i + 1]) for one, all_ in zip(alone, whole, strict=True)), i


def test_fast_kernels_are_declared() -> None:
    for op, name in ((attend, "cpu"), (paged_attention, "triton"), (moe, "triton"), (stored_moe, "triton")):
        assert name not in op.providers or op.providers[name].batch_invariant


def test_who_is_declared_covers_a_decoder() -> None:
    needed = "linear stored_linear rms_norm add_rms_norm embedding rope prepare paged_attention gated_activation"
    needed += " pointwise greedy_sample draw_tokens edit_logits token_logprobs step_inputs append_tokens write_pages"
    for name in needed.split():
        assert any(p.batch_invariant for p in OPS[name].providers.values()), name
