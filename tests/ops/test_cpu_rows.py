"""Norms, gates and the greedy draw of the compiled CPU kernels, for each set of instructions there is here."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quire.ops.activation import GateSpec, gated_activation
from quire.ops.greedy import greedy_sample
from quire.ops.norm import NormSpec, add_rms_norm, rms_norm
from quire.ops.registry import DEFAULT_TOLERANCE
from quire.ops.samples import dtypes, normal
from tests.marks import needs_native

pytestmark = [
    pytest.mark.torch,
    needs_native,
]
DTYPES = st.sampled_from(["float32", "bfloat16"])


def same(got: torch.Tensor, want: torch.Tensor) -> None:
    rtol, atol = DEFAULT_TOLERANCE[str(want.dtype).removeprefix("torch.")]
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol, equal_nan=True)


@given(rows=st.integers(0, 40), size=st.integers(1, 1100), offset=st.sampled_from([0.0, 1.0]), dtype=DTYPES)
def test_norms_of_any_size(instructions: str, rows: int, size: int, offset: float, dtype: str) -> None:
    spec = NormSpec(size, 1e-6, offset, dtype)
    x, delta, weight = normal(dtype, rows, size), normal(dtype, rows, size, seed=1), normal(dtype, size, seed=2)
    same(rms_norm.providers["cpu"].function(x, weight, spec), rms_norm.reference(x, weight, spec))
    made = add_rms_norm.providers["cpu"].function(x, delta, weight, spec)
    for got, want in zip(made, add_rms_norm.reference(x, delta, weight, spec), strict=True):
        same(got, want)


@given(rows=st.integers(0, 40), inner=st.integers(1, 900), kind=st.sampled_from(["silu", "gelu_tanh"]), dtype=DTYPES)
def test_gates_of_any_size(instructions: str, rows: int, inner: int, kind: str, dtype: str) -> None:
    x = normal(dtype, rows, 2 * inner) * 4
    spec = GateSpec(inner, kind, dtype)  # type: ignore[arg-type]
    same(gated_activation.providers["cpu"].function(x, spec), gated_activation.reference(x, spec))


def test_gates_of_what_is_extreme(instructions: str) -> None:
    for kind in ("silu", "gelu_tanh"):
        gate = torch.tensor([[0.0, -0.0, 1e-30, 90.0, -90.0, 3e38, -3e38, torch.inf, torch.nan]])
        x = torch.cat([gate, torch.ones_like(gate)], 1)
        spec = GateSpec(9, kind)  # type: ignore[arg-type]
        same(gated_activation.providers["cpu"].function(x, spec), gated_activation.reference(x, spec))


@given(
    rows=st.integers(0, 5),
    vocab=st.one_of(st.integers(1, 100), st.integers(16_300, 16_500), st.just(40_000)),
    spoiled=st.sampled_from([None, torch.nan, torch.inf, -torch.inf]),
    dtype=DTYPES,
    data=st.data(),
)
def test_the_greedy_draw(
    instructions: str, rows: int, vocab: int, spoiled: float | None, dtype: str, data: st.DataObject
) -> None:
    # Few values, so that many are equal: the first of them counts. Rows lie apart, as those of a padded head do.
    logits = torch.randint(-3, 4, (rows, vocab + 3), generator=torch.Generator().manual_seed(vocab)).to(dtypes[dtype])
    logits = logits[:, :vocab]
    if rows and spoiled is not None:
        logits[rows - 1, data.draw(st.integers(0, vocab - 1))] = spoiled
    assert torch.equal(greedy_sample.providers["cpu"].function(logits), greedy_sample.reference(logits))
