"""Weights with scales of groups packed for the compiled CPU kernels, for each set of instructions there is here."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from quire.checkpoint.gguf import BLOCKS
from quire.ops.samples import normal
from quire.ops.stored import arranged, unfolded
from quire.platforms import native
from quire.quantization.blocks import BlockForm, Blocks
from quire.quantization.elements import ELEMENTS, pack
from quire.quantization.scaled import SCALE_BYTES, Block, Form, Scaled
from quire.quantization.storage import Storage
from tests.marks import needs_native
from tests.ops.test_cpu_linear import product, rounded

pytestmark = [pytest.mark.torch, needs_native]
FORMS = (
    Form("uint4b8", 32, "float16"),
    Form("uint4", 32, "float16", zeros=True),
    Form("uint4", 128, "bfloat16", zeros=True),
    Form("int4", 64, "bfloat16", shifted=True),
    Form("uint4", 32, shifted=True),
    Form("uint4b8", None, "float16"),
    Form("uint2", 16, "float16", zeros=True),
    Form("uint3b4", 128),
    Form("uint5b16", 32, "float16"),
    Form("uint6", 256),
    Form("int8", 32, "float16"),
    Form("uint8", 64, "float16", zeros=True),
    Form("int8", 16, "bfloat16", shifted=True),
    Form("uint4b8", 32, "float8_e4m3fn", factor="multiply"),
)
KINDS = {
    name: BlockForm(name, per, each) for name, per, each in BLOCKS.values() if name not in ("Q4_0", "Q5_0", "Q8_0")
}


def of_form(form: Form, outputs: int, inputs: int) -> tuple[Scaled, Block]:
    """Any codes, and scales and what else there is near 0.01."""
    plain = Scaled.of(outputs, inputs, form, "float32", "cpu")
    codes = torch.randint(0, 1 << form.bits, (outputs, inputs), generator=torch.manual_seed(inputs), dtype=torch.uint8)
    scales = normal("float32", outputs, plain.groups, seed=3).abs() / 100
    assert form.scale in SCALE_BYTES
    block = Block(
        pack(codes, form.bits),
        scales.to(getattr(torch, form.scale)),
        torch.randint(0, 1 << form.bits, scales.shape, dtype=torch.uint8) if form.zeros else None,
        normal("float32", outputs, seed=4).abs() + 1 if form.factor else None,
        shifts=normal("bfloat16", outputs, plain.groups, seed=5).float() / 50 if form.shifted else None,
    )
    return plain, block


def of_blocks(form: BlockForm, outputs: int, inputs: int) -> tuple[Blocks, Block]:
    """Any bytes; a number of 16 bits that is none becomes 1."""
    count = -(-inputs // form.per)
    raw = np.random.default_rng(inputs).integers(0, 256, (outputs, count * form.each // 2 * 2), dtype=np.uint8)
    halves = raw.view(np.float16)
    halves[~np.isfinite(halves)] = 1.0
    return Blocks(outputs, inputs, form, "float32", "cpu"), Block(torch.from_numpy(raw), torch.zeros(outputs, 0))


def packed(plain: Scaled | Blocks, block: Block, cut: int = 0) -> tuple[Storage, Tensor, Tensor]:
    """The weight as the kernels want it, rows from `cut` on first; and the values that it has."""
    own = arranged(plain, ["cpu"]) if isinstance(plain, Scaled) else unfolded(plain, ["cpu"])
    assert own is not None and type(own).__name__ == "Grouped"
    data, theirs = own.allocate(), plain.allocate()
    plain.put_block(theirs, 0, block)
    for first, last in ((cut, plain.outputs), (0, cut)):
        own.put_block(data, first, block.rows(first, last))  # type: ignore[attr-defined]
    return own, data, plain.rows(theirs, torch.arange(plain.outputs))


def close(x: Tensor, group: int, made: tuple[Storage, Tensor, Tensor]) -> None:
    """The product is that of the values and of activations rounded by groups."""
    storage, data, values = made
    got, row = product(x, storage, data).double(), rounded(x, 4, group)
    want, size = row @ values.double().T, row.abs() @ values.double().abs().T
    # Quantized activations may fall to either side of a tie; codes and shifts cancel each other out.
    assert ((got - want).abs() <= 5e-3 * size + want.abs() / 128 + 1e-6).all()


@given(
    form=st.sampled_from(FORMS),
    rows=st.integers(1, 30),
    inputs=st.integers(1, 600),
    outputs=st.integers(1, 70),
    cut=st.integers(0, 70),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_any_form(instructions: str, form: Form, rows: int, inputs: int, outputs: int, cut: int, dtype: str) -> None:
    made = packed(*of_form(form, outputs, inputs), min(cut, outputs))
    assert torch.equal(made[0].rows(made[1], torch.arange(outputs)), made[2])
    close(normal(dtype, rows, inputs) + 1, form.group or 256, made)


@given(
    kind=st.sampled_from(sorted(KINDS)),
    rows=st.integers(1, 30),
    blocks=st.integers(1, 3),
    short=st.integers(0, 3),
    outputs=st.integers(1, 70),
)
def test_any_blocks_of_ggmls(instructions: str, kind: str, rows: int, blocks: int, short: int, outputs: int) -> None:
    form = KINDS[kind]
    assert form.scaled is not None or kind == "Q2_K"
    group = 16 if kind in ("Q2_K", "Q3_K", "Q6_K") else 32
    # A rank's columns may end within a block.
    inputs = blocks * form.per - short * group if form.per > 32 else blocks * form.per
    plain, block = of_blocks(form, outputs, inputs)
    made = packed(plain, block, outputs // 2)
    assert torch.equal(made[0].rows(made[1], torch.arange(outputs)), made[2])
    scaled = made[2] / made[2].abs().max().clamp(min=1e-30)
    assert scaled.isfinite().all()
    if made[2].abs().max() < 1e30:
        close(normal("float32", rows, inputs), group, made)


@pytest.mark.parametrize("form", [FORMS[1], FORMS[8], FORMS[11]], ids=lambda form: form.element)
def test_rows_threads_and_what_is_not_finite(instructions: str, form: Form) -> None:
    storage, data, _ = packed(*of_form(form, 700, 320))
    x = normal("float32", 40, 320)
    together = product(x, storage, data)
    for rows in (1, 2, 5, 13):
        assert torch.equal(product(x[3 : 3 + rows], storage, data), together[3 : 3 + rows])
    try:
        native.set_threads(3)
        assert torch.equal(product(x, storage, data), together)
    finally:
        native.set_threads(2)
    x[0, 3], x[1, 5] = float("nan"), float("inf")
    spoilt = product(x, storage, data)
    assert spoilt[0].isnan().all() and not spoilt[1].isfinite().any() and torch.equal(spoilt[2:], together[2:])


def test_what_would_be_rounded_otherwise_is_left_alone() -> None:
    refused = (
        Form("uint4", 64, zeros=True),
        Form("uint4b8", 20),
        Form("uint4b8", 32, ordered=True),
        Form("uint4b8", 32, columns=True),
        Form("int8", 128, row_block=128),
        Form("fp4_e2m1", 32, "e8m0"),
    )
    for form in refused:
        assert arranged(Scaled.of(64, 640, form, "float32", "cpu"), ["cpu"]) is None
    for element in ELEMENTS:
        if not element.startswith(("int", "uint")):
            assert arranged(Scaled.of(64, 640, Form(element, 64), "float32", "cpu"), ["cpu"]) is None
