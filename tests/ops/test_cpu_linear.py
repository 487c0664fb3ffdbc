"""Weights packed for the compiled CPU kernels, and products with them, for each set of instructions there is here."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from quire.base.errors import PlatformError
from quire.ops.registry import choose, load_providers
from quire.ops.samples import dtypes, normal
from quire.ops.stored import Bits, StoredSpec, WeightSpec, storage_for, stored_linear
from quire.platforms import native
from quire.quantization.canonical import Canonical
from quire.quantization.storage import Storage
from tests.marks import needs_native

pytestmark = [
    pytest.mark.torch,
    needs_native,
]


def stored(weight: Tensor, bits: Bits | None = None, group: int = 32) -> tuple[Storage, Tensor]:
    """The weight as the kernels want it."""
    dtype = str(weight.dtype).removeprefix("torch.")
    storage = storage_for(WeightSpec(*weight.shape, bits, group, dtype, "cpu"), ["cpu"])
    assert storage is not None
    data = storage.allocate()
    storage.put(data, 0, weight)
    return storage, data


def product(x: Tensor, storage: Storage, data: Tensor, bias: Tensor | None = None) -> Tensor:
    """The product by the compiled kernel."""
    spec = StoredSpec(storage, bias is not None, str(x.dtype).removeprefix("torch."))
    made: Tensor = stored_linear.providers["cpu"].function(x, data, bias, spec)
    return made


def rounded(x: Tensor, bits: Bits | None, group: int) -> Tensor:
    """What the kernels make of activations: themselves, or 127 steps to the largest of a row or of a group."""
    if bits is None:
        return x.double()
    size = x.shape[1] if bits == 8 else group
    parts = [part.double() for part in x.float().split(size, 1)]
    steps = [part.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127 for part in parts]
    return torch.cat([(part / step).round() * step for part, step in zip(parts, steps, strict=True)], 1)


@given(
    rows=st.integers(1, 30),
    inputs=st.integers(1, 300),
    outputs=st.integers(1, 150),
    bias=st.booleans(),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    bits=st.sampled_from([None, 8, 4]),
    group=st.sampled_from([32, 64, 128]),
)
def test_any_shape(
    instructions: str, rows: int, inputs: int, outputs: int, bias: bool, dtype: str, bits: Bits | None, group: int
) -> None:
    x, weight = normal(dtype, rows, inputs), normal(dtype, outputs, inputs, seed=1)
    added = normal(dtype, outputs, seed=2) if bias else None
    storage, data = stored(weight, bits, group)
    got = product(x, storage, data, added)
    values = storage.rows(data, torch.arange(outputs))
    row = rounded(x, bits, group)
    want = row @ values.double().T + (0 if added is None else added.double())
    size = row.abs() @ values.double().abs().T
    # Rounding of the sum, of the result to its dtype, and of quantized values that lie at a tie.
    slack = (1e-5 if bits is None else 5e-3) * size + (want.abs() / 128 if dtype == "bfloat16" else 1e-6)
    assert got.dtype == dtypes[dtype]
    assert ((got.double() - want).abs() <= slack).all()


@given(
    inputs=st.integers(1, 300),
    outputs=st.integers(1, 70),
    cut=st.integers(0, 70),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    bits=st.sampled_from([None, 8, 4]),
    group=st.sampled_from([32, 64, 128]),
)
def test_rows_come_back(
    instructions: str, inputs: int, outputs: int, cut: int, dtype: str, bits: Bits | None, group: int
) -> None:
    cut = min(cut, outputs)
    weight = normal(dtype, outputs, inputs)
    storage, data = stored(torch.zeros_like(weight), bits, group)
    storage.put(data, cut, weight[cut:])
    storage.put(data, 0, weight[:cut])
    ids = torch.arange(outputs).flip(0)
    got = storage.rows(data, ids)
    if bits is None:
        assert torch.equal(got, weight.flip(0))
        return
    canonical = Canonical(outputs, inputs, bits, group, dtype, "cpu")
    form = canonical.allocate()
    canonical.put(form, 0, weight)
    # A few values lie so near a tie that the order of a sum decides.
    same = (got == canonical.rows(form, ids)).float().mean()
    lost, least = ((rows - weight.flip(0)).float().square().sum() for rows in (got, canonical.rows(form, ids)))
    assert same > 0.9 or lost <= least * 1.01 + 1e-9
    if bits == 8:
        storage.put_quantized(data, 0, *canonical.views(form))
        assert torch.equal(storage.rows(data, ids), canonical.rows(form, ids))
    else:
        with pytest.raises(NotImplementedError, match="rows of 4 bits"):
            storage.put_quantized(data, 0, *canonical.views(form))


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_does_not_depend_on_the_others(instructions: str, dtype: str, bits: Bits | None) -> None:
    # Enough for several threads to share the work.
    x, weight = normal(dtype, 40, 200), normal(dtype, 2100, 200, seed=1)
    storage, data = stored(weight, bits)
    together = product(x, storage, data)
    for rows in (1, 2, 5, 13):
        assert torch.equal(product(x[3 : 3 + rows], storage, data), together[3 : 3 + rows])


@pytest.mark.parametrize(
    ("dtype", "bits", "rows"),
    [("float32", None, 1100), ("bfloat16", None, 300), ("bfloat16", 8, 300), ("float32", 4, 300)],
)
def test_threads_change_nothing(instructions: str, dtype: str, bits: Bits | None, rows: int) -> None:
    x, weight = normal(dtype, rows, 64), normal(dtype, 700, 64, seed=1)
    storage, data = stored(weight, bits)
    alone = product(x, storage, data)
    try:
        for threads in (2, 3):
            assert native.set_threads(threads) == threads
            assert torch.equal(product(x, storage, data), alone)
    finally:
        native.set_threads(torch.get_num_threads())


def test_rows_apart_columns_apart_and_no_rows(instructions: str) -> None:
    wide, weight = normal("float32", 6, 100), normal("float32", 8, 40, seed=1)
    packed = stored(weight)
    torch.testing.assert_close(product(wide[:, 30:70], *packed), wide[:, 30:70] @ weight.T)
    turned = normal("float32", 40, 3).T
    torch.testing.assert_close(product(turned, *packed), turned @ weight.T)
    assert product(wide[:0, :40], *packed).shape == (0, 8)


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_what_is_not_finite_stays_so(instructions: str, bits: Bits | None) -> None:
    for dtype in ("float32", "bfloat16"):
        x, weight = normal(dtype, 3, 64), normal(dtype, 5, 64, seed=1)
        x[0, 3], x[1, 5] = float("nan"), float("inf")
        made = product(x, *stored(weight, bits))
        assert made[0].isnan().all() and not made[1].isfinite().any() and made[2].isfinite().all()


def test_zeros_stay_zero(instructions: str) -> None:
    for bits in (None, 8, 4):
        storage, data = stored(torch.zeros(20, 40), bits)
        assert not storage.rows(data, torch.arange(20)).any()
        assert not product(normal("float32", 2, 40), storage, data).any()
        filled = stored(normal("float32", 20, 40), bits)
        assert not product(torch.zeros(2, 40), *filled).any()


def test_large_weights_lie_on_huge_pages() -> None:
    storage, data = stored(normal("bfloat16", 1100, 1024))
    assert data.data_ptr() % (2 << 20) == 0
    assert torch.equal(storage.rows(data, torch.tensor([1099])), normal("bfloat16", 1100, 1024)[1099:])


def test_what_others_packed_is_left_to_the_reference() -> None:
    load_providers(["cpu"])
    theirs = StoredSpec(Canonical(8, 8, 8, 32, "float32", "cpu"))
    assert choose(stored_linear, theirs, ["cpu"]).provider == "reference"
    for wanted in (WeightSpec(8, 8, 8, 32, "float32", "cuda:0"), WeightSpec(8, 8, 4, 20, "float32", "cpu")):
        assert isinstance(storage_for(wanted, ["cpu"]), Canonical)
    assert storage_for(WeightSpec(8, 8, None, 32, "float16", "cpu"), ["cpu"]) is None


def test_instructions_that_there_are_not_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    library, used = native.load()
    with pytest.raises(PlatformError, match=r"QUIRE_CPU_ISA=mmx cannot be used.*leave it unset"):
        native.start(library, "mmx")
    for name in ("QUIRE_CPU_ISA", "ATEN_CPU_CAPABILITY"):
        monkeypatch.delenv(name, raising=False)
    _, best = native.load.__wrapped__()
    assert native.start(library, None) == best
    native.start(library, used)
