"""Products of the compiled CPU kernels, for each set of instructions that this processor has."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quire.base.errors import PlatformError
from quire.ops.linear import LinearSpec, linear
from quire.ops.registry import choose, load_providers
from quire.ops.samples import dtypes, normal
from quire.platforms import native

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(not native.is_built(), reason="quire was installed without a compiler"),
]
INSTRUCTIONS = ("avx2", "avx512", "avx512_bf16")


@pytest.fixture(params=INSTRUCTIONS, scope="module")
def instructions(request: pytest.FixtureRequest) -> Iterator[str]:
    """Has the kernels use these instructions."""
    load_providers(["cpu"])
    library, best = native.load()
    try:
        yield native.start(library, request.param)
    except PlatformError:
        pytest.skip(f"this processor has no {request.param}")
    finally:
        native.start(library, best)


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The product by the compiled kernel."""
    dtype = str(x.dtype).removeprefix("torch.")
    spec = LinearSpec(weight.shape[1], weight.shape[0], bias is not None, dtype)
    made: torch.Tensor = linear.providers["cpu"].function(x, weight, bias, spec)
    return made


@given(
    rows=st.integers(1, 18),
    inputs=st.integers(1, 150),
    outputs=st.integers(1, 90),
    bias=st.booleans(),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_any_shape(instructions: str, rows: int, inputs: int, outputs: int, bias: bool, dtype: str) -> None:
    x, weight = normal(dtype, rows, inputs), normal(dtype, outputs, inputs, seed=1)
    added = normal(dtype, outputs, seed=2) if bias else None
    got = product(x, weight, added)
    want = x.double() @ weight.double().T + (0 if added is None else added.double())
    # Rounding of the sum, and of the result to its dtype.
    slack = 1e-5 * (x.double().abs() @ weight.double().abs().T) + (want.abs() / 128 if dtype == "bfloat16" else 1e-6)
    assert got.dtype == dtypes[dtype]
    assert ((got.double() - want).abs() <= slack).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_does_not_depend_on_the_others(instructions: str, dtype: str) -> None:
    # Enough for several threads to share the work.
    x, weight = normal(dtype, 16, 200), normal(dtype, 2100, 200, seed=1)
    together = product(x, weight, None)
    for rows in (1, 2, 5):
        assert torch.equal(product(x[3 : 3 + rows], weight, None), together[3 : 3 + rows])


def test_rows_apart_columns_apart_and_no_rows(instructions: str) -> None:
    wide, weight = normal("float32", 6, 100), normal("float32", 8, 40, seed=1)
    torch.testing.assert_close(product(wide[:, 30:70], weight, None), wide[:, 30:70] @ weight.T)
    turned = normal("float32", 40, 3).T
    torch.testing.assert_close(product(turned, weight, None), turned @ weight.T)
    assert product(wide[:0, :40], weight, None).shape == (0, 8)


def test_what_is_not_finite_stays_so(instructions: str) -> None:
    for dtype in ("float32", "bfloat16"):
        x, weight = normal(dtype, 3, 64), normal(dtype, 5, 64, seed=1)
        x[0, 3], x[1, 5] = float("nan"), float("inf")
        made = product(x, weight, None)
        assert made[0].isnan().all() and made[1].isinf().all() and made[2].isfinite().all()


def test_few_rows_are_compiled_and_many_are_left_to_torch() -> None:
    load_providers(["cpu", "torch_native"])
    chosen = choose(linear, LinearSpec(64, 64), ["cpu", "torch_native"])
    assert [(served.first, served.last, served.provider) for served in chosen.table] == [
        (0, 16, "cpu"),
        (17, None, "reference"),
    ]
    assert "cuda:0" in choose(linear, LinearSpec(64, 64, device="cuda:0"), ["cpu"]).refused["cpu"]


def test_instructions_that_there_are_not_are_refused_by_name() -> None:
    library, best = native.load()
    with pytest.raises(PlatformError, match="QUIRE_CPU_ISA=mmx"):
        native.start(library, "mmx")
    assert native.start(library, None) in INSTRUCTIONS
    native.start(library, best)
