"""Weights in the order of GPU kernels: the same values, and interpreted kernels that make the same products."""

from dataclasses import replace

import pytest
import torch

from quire.base.errors import CheckpointError
from quire.ops.samples import normal
from quire.ops.stored import StoredSpec, stored_linear
from quire.quantization.elements import ELEMENTS
from quire.quantization.scaled import Block, Form, Scaled
from quire.quantization.words import Words, interleaved, span
from tests.ops.triton import INTERPRETER, needs_interpreter
from tests.quantization.forms import FORMS

pytestmark = pytest.mark.torch
INPUTS = (384, 352)
"""A multiple of a run's, and one that is none."""
CASES = [
    (name, inputs) for name, form in FORMS.items() for inputs in INPUTS if not (form.ordered and inputs % form.group)
]
SEEN = [name for name, form in FORMS.items() if Words.like(Scaled.of(8, 384, form, "float32", "cpu")).form == form]
"""Forms that kernels see; weights in all others are stored in one of these."""


def weight(form: Form, outputs: int, inputs: int) -> tuple[Scaled, torch.Tensor]:
    """Codes of every pattern in the order of checkpoints, and plausible scales."""
    generator = torch.Generator().manual_seed(7)
    storage = Scaled.of(outputs, inputs, form, "float32", "cpu")
    bits = torch.randint(0, 256, (outputs, inputs * form.bits // 8), generator=generator, dtype=torch.uint8)
    if form.element.startswith("fp8"):
        bits &= 0xBF  # neither NaN nor infinity
    rows = -(-outputs // form.row_block)
    scales = torch.rand(rows, storage.groups, generator=generator) / 16 + 0.01
    if form.scale == "e8m0":
        kept = torch.randint(118, 124, scales.shape, generator=generator, dtype=torch.uint8)
    else:
        kept = scales.to(getattr(torch, form.scale))
    block = Block(bits, kept)
    if form.zeros:
        points = torch.randint(0, 1 << form.bits, (outputs, storage.groups), generator=generator, dtype=torch.uint8)
        block = replace(block, zeros=points)
    if form.columns:
        block = replace(block, columns=torch.rand(inputs, generator=generator) + 0.5)
    if form.shifted:
        block = replace(block, shifts=-torch.rand(outputs, storage.groups, generator=generator) / 2)
    if form.ordered:
        block = replace(block, order=torch.randperm(inputs, generator=generator).int() // (form.group or 1))
    if form.factor:
        block = replace(block, factors=torch.rand(outputs, generator=generator) + 0.5)
    data = storage.allocate()
    storage.put_block(data, 0, block)
    if not Words.holds(storage):
        return storage, data
    # In two pieces, as loaders bring them.
    own = Words.like(storage)
    moved = own.allocate()
    half = outputs // 2 // form.row_block * form.row_block
    for first, last in ((half, outputs), (0, half)):
        share = slice(first, last)
        own.put_block(
            moved,
            first,
            replace(
                block,
                codes=bits[share],
                scales=kept[first // form.row_block : -(-last // form.row_block)],
                zeros=None if block.zeros is None else block.zeros[share],
                shifts=None if block.shifts is None else block.shifts[share],
                factors=None if block.factors is None else block.factors[share],
            ),
        )
    ids = torch.randperm(outputs, generator=generator)
    assert torch.equal(own.rows(moved, ids), storage.rows(data, ids))
    return own, moved


@pytest.mark.parametrize(("name", "inputs"), CASES)
def test_words_hold_the_same_values(name: str, inputs: int) -> None:
    storage, _ = weight(FORMS[name], 40, inputs)
    assert isinstance(storage, Words)
    assert storage.form.row_block == 1 or storage.form.scale == "float32", "which is what libraries take"


def test_groups_of_unequal_size_are_refused() -> None:
    own = Words.like(Scaled.of(1, 128, Form("uint4b8", 64, ordered=True), "float32", "cpu"))
    block = Block(torch.zeros(1, 64, dtype=torch.uint8), torch.ones(1, 2), order=torch.arange(128).int() // 100)
    with pytest.raises(CheckpointError, match="do not have 64 inputs each"):
        own.put_block(own.allocate(), 0, block)


@pytest.mark.parametrize("bits", [4, 8])
def test_parts_of_a_word_are_inputs_a_run_apart(bits: int) -> None:
    codes = torch.arange(2 * span(bits)).view(1, -1) % (1 << bits)
    words = interleaved(codes.to(torch.uint8), bits).view(torch.int16)[0].int() & 0xFFFF
    for word in range(64):
        first = word // 32 * span(bits) + word % 32
        parts = [(int(words[word]) >> (bits * i)) & ((1 << bits) - 1) for i in range(16 // bits)]
        assert parts == [int(codes[0, first + 32 * i]) for i in range(16 // bits)]


@needs_interpreter
@pytest.mark.parametrize("rows", [1, 3, 150])
@pytest.mark.parametrize(
    ("name", "inputs"),
    [(name, 384) for name in SEEN]
    + [(name, 352) for name in ("fp8", "int8 groups", "int4 zeros", "int4 shifted", "nvfp4")],
)
def test_kernels_multiply_what_the_reference_does(name: str, rows: int, inputs: int) -> None:
    from quire.kernels.triton.dense.quantized import linear

    storage, data = weight(FORMS[name], 40, inputs)
    spec = StoredSpec(storage, True, "float32")
    x, bias = normal("float32", rows, inputs), normal("float32", 40, seed=3)
    want = stored_linear(x, data, bias, spec)
    got = linear.triton_stored_linear(x, data, bias, spec)
    # Integers of 8 bits meet activations of 8 bits where rows are many.
    may = 2e-2 if name == "int8" and rows > 128 else 1e-4
    assert (got - want).norm() / want.norm() < may


@needs_interpreter
@pytest.mark.parametrize(("name", "dtype"), [("int4 zeros", "bfloat16"), ("int4 rows", "float16")])
def test_whole_numbers_lose_nothing_of_a_row(name: str, dtype: str) -> None:
    from quire.kernels.triton.dense.quantized import gemv
    from quire.kernels.triton.dense.quantized.weight import Weight

    storage, data = weight(FORMS[name], 16, 384)
    storage = replace(storage, dtype=dtype)
    assert gemv.counts(Weight(storage, data))
    generator = torch.Generator().manual_seed(1)
    # All eight bits of a number in bfloat16, down to a 64th of the largest.
    powers = torch.randint(-6, 1, (1, 384), generator=generator)
    numbers = torch.randint(128, 256, (1, 384), generator=generator) * (-1) ** powers
    x = (numbers * 2.0**powers).to(getattr(torch, dtype))
    got = gemv.product(x, Weight(storage, data), None, "").double()
    want = x.double() @ replace(storage, dtype="float32").rows(data, torch.arange(16)).double().T
    # Which is what a result in bfloat16 holds: the interpreter cuts off its end.
    assert ((got - want).abs() <= want.abs() / 128).all()
    for poison in (float("inf"), float("nan")):
        x[0, 5] = poison
        assert gemv.product(x, Weight(storage, data), None, "").isnan().all()
    assert not gemv.product(torch.zeros_like(x), Weight(storage, data), None, "").any()


@needs_interpreter
@pytest.mark.parametrize("rows", [1, 3, 140])
def test_what_shifts_take_away_again_is_not_rounded_before(rows: int) -> None:
    """Where activations are alike, codes alone make sums many times as large as the result."""
    from quire.kernels.triton.dense.quantized import linear

    storage = Words.like(Scaled.of(16, 512, FORMS["int4 shifted"], "float16", "cpu"))
    codes = torch.randint(0, 256, (16, 256), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    scales = torch.full((16, 16), 0.01)
    storage.put_block(data := storage.allocate(), 0, Block(codes, scales, shifts=scales * -7.5))
    spec, x = StoredSpec(storage, dtype="float16"), normal("float16", rows, 512) + 2
    want = x.double() @ replace(storage, dtype="float32").rows(data, torch.arange(16)).double().T
    got = linear.triton_stored_linear(x, data, None, spec).double()
    assert (got - want).norm() / want.norm() < 3e-3


@needs_interpreter
@pytest.mark.parametrize("group", [None, 128])
def test_activations_are_rounded_by_rows_or_groups(group: int | None) -> None:
    from quire.kernels.triton.dense.quantized.narrowed import rounded

    x = normal("bfloat16", 5, 384)
    codes, scales = rounded(x, torch.int8, 384, group)
    wide = x.float().view(5, -1, group or 384)
    assert torch.allclose(scales[:5], wide.abs().amax(2) / 127)
    # Bytes of a word are inputs 32 apart.
    back = codes[:5].view(5, -1, 32, 2).transpose(2, 3).reshape(wide.shape) * scales[:5, :, None]
    assert ((back - wide).abs() <= scales[:5, :, None] * 0.501).all()
    assert group is None or (scales.stride(0) == 1 and len(codes) == len(scales) == 16)


@needs_interpreter
def test_a_bias_meets_products_whose_scales_are_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from quire.kernels.triton.dense.quantized import narrowed
    from quire.kernels.triton.dense.quantized.weight import Weight

    def multiply(a: torch.Tensor, b: torch.Tensor, *rest: torch.Tensor | None, **said: object) -> torch.Tensor:
        assert rest[-1] is None, "the library adds no bias"
        return a.float() @ b.float()

    monkeypatch.setattr(torch, "_scaled_mm", multiply)
    monkeypatch.setattr(narrowed, "in_blocks", lambda weight: True)
    seen = Weight(*weight(Form("fp8_e4m3", 128, row_block=128), 256, 512))
    x, bias = normal("float32", 5, 512), normal("float32", 256, seed=3)
    assert torch.equal(narrowed.product(x, seen, bias), narrowed.product(x, seen, None) + bias)


@needs_interpreter
@pytest.mark.parametrize("kind", ["uint4b8", "uint4", "fp4_e2m1", "nf4", "bnb_fp4"])
def test_every_code_of_four_bits_is_its_value(kind: str) -> None:
    from quire.kernels.triton.dense.quantized import unpacked
    from quire.kernels.triton.dense.quantized.weight import Weight

    form = Form(kind, 128 if kind != "fp4_e2m1" else 32, zeros=kind == "uint4")
    own = Words.like(Scaled.of(1, 128, form, "float32", "cpu"))
    data = own.allocate()
    codes = torch.arange(128) % 16
    packed = (codes[0::2] | codes[1::2] << 4).to(torch.uint8).view(1, -1)
    points = torch.zeros(1, own.groups, dtype=torch.uint8) if form.zeros else None
    own.put_block(data, 0, Block(packed, torch.ones(1, own.groups), points))
    wanted = torch.tensor(ELEMENTS[kind].values)[codes]
    assert torch.equal(unpacked.values(Weight(own, data), 0, 1, torch.float32)[0], wanted)


@needs_interpreter
@pytest.mark.parametrize(
    ("kind", "dtype", "native"), [("nf4", "float32", False), ("nf4", "bfloat16", True), ("uint4b8", "float32", True)]
)
def test_values_in_float32_are_not_looked_up_as_float16(
    monkeypatch: pytest.MonkeyPatch, kind: str, dtype: str, native: bool
) -> None:
    from quire.kernels.triton.dense.quantized import weight as seen

    monkeypatch.setattr(seen, "converts", lambda device: True)
    storage = Words.like(Scaled.of(1, 128, Form(kind, 128), dtype, "cpu"))
    assert seen.Weight(storage, storage.allocate()).constants["NATIVE"] is native


@needs_interpreter
def test_what_is_not_read_is_said() -> None:
    from quire.kernels.triton.dense.quantized.weight import unread

    def refusal(form: Form, inputs: int = 256) -> str:
        made = Scaled.of(8, inputs, form, "float32", "cpu")
        return unread(Words.like(made) if Words.holds(made) else made) or ""

    assert "e8m0" in refusal(Form("e8m0", 64)) and not refusal(Form("nf4", 64))
    assert "multiple of 128" in refusal(Form("uint4b8", 32), 96)
    share = Scaled(8, 256, Form("uint4b8", 128, ordered=True), 4, 0, "float32", "cpu")
    assert not Words.holds(share) and "order" in (unread(share) or "")
    assert "have no numbers" in refusal(Form("uint4b8", 64, ordered=True, columns=True))
    assert "groups of 48" in refusal(Form("uint4b8", 48), 384) and not refusal(Form("uint4b8", 128))


@pytest.mark.skipif(not INTERPRETER, reason="kernels run on a GPU or under Triton's interpreter")
@pytest.mark.parametrize("inputs", [2560, 5376])
def test_heads_of_large_vocabularies_have_as_many_tiles_as_can_be_counted(inputs: int) -> None:
    from quire.kernels.triton.dense.quantized.skinny import tiling
    from quire.kernels.triton.dense.quantized.weight import Weight, arranged
    from quire.kernels.triton.dense.skinny import MOST_TILES

    head = arranged(Scaled.of(262_208, inputs, Form("int8", None), "bfloat16", "cpu"))
    assert isinstance(head, Words)
    for rows in (2, 5, 17, 64):
        cut = tiling(Weight(head, torch.empty(head.nbytes, dtype=torch.uint8, device="meta")), rows, gate=False)
        assert cut.parts == 1 or -(-head.outputs // cut.outputs) <= MOST_TILES, (rows, cut)
