"""Triton's kernels for weights of 4 and 8 bits on a real GPU: right, and the same in every run."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

if torch.cuda.is_available():
    from quire.kernels.triton.dense.quantized import narrowed
    from quire.kernels.triton.dense.quantized.linear import triton_stored_gate_up, triton_stored_linear
    from quire.kernels.triton.dense.quantized.weight import Weight, arranged
    from quire.ops.activation import GateSpec
    from quire.ops.stored import StoredSpec, stored_linear
    from quire.ops.stored_gate import StoredGateSpec, stored_gate_up
    from quire.quantization.scaled import Block, Form, Scaled
    from tests.quantization.forms import FORMS

OUTPUTS, INPUTS = 272, 896


def weight(name, dtype="bfloat16", inputs=INPUTS):
    storage = arranged(Scaled.of(OUTPUTS, inputs, FORMS[name], dtype, "cuda"))
    data = storage.allocate()
    storage.put(data, 0, torch.randn(OUTPUTS, inputs, device="cuda") / inputs**0.5)
    return storage, data


@pytest.mark.parametrize("rows", [1, 2, 17, 64, 128, 129, 700])
@pytest.mark.parametrize(
    "name", ["fp8", "fp8 groups", "mxfp8", "int8", "int4", "int4 ordered", "int4 32", "int5", "nf4", "nvfp4", "mxfp4"]
)
def test_products_equal_the_reference_in_every_run(name, rows):
    storage, data = weight(name)
    x, bias = torch.randn(rows, INPUTS, device="cuda").bfloat16(), torch.randn(OUTPUTS, device="cuda").bfloat16()
    spec = StoredSpec(storage, True, "bfloat16", "cuda")
    got = triton_stored_linear(x, data, bias, spec)
    want = stored_linear(x.float(), data, bias.float(), spec)
    # Activations of 8 bits are off by 2 to 3 %.
    may = 4e-2 if narrowed.takes(Weight(storage, data), rows) else 6e-3
    assert (got.float() - want).norm() / want.norm() < may
    assert all(torch.equal(triton_stored_linear(x, data, bias, spec), got) for _ in range(3))


@pytest.mark.parametrize("rows", [1, 2, 17, 300])
@pytest.mark.parametrize("name", ["float32", "bfloat16", "int4 zeros", "int4 shifted"])
def test_forms_of_checkpoints(name, rows):
    """Blocks of fp8 with scales of these types, as DeepSeek and Qwen ship them, zero points, and ggml's shifts."""
    form = FORMS[name] if name in FORMS else Form("fp8_e4m3", 128, name, row_block=128)
    storage = arranged(Scaled.of(256, 1024, form, "bfloat16", "cuda"))
    codes = torch.randn(256, 1024, device="cuda").to(torch.float8_e4m3fn).view(torch.uint8)
    scales = torch.rand(256 // form.row_block, storage.groups, device="cuda") / 32
    shifts = scales * -7.5 if form.shifted else None
    zeros = torch.randint(16, (256, 8), device="cuda").to(torch.uint8) if form.zeros else None
    storage.put_block(data := storage.allocate(), 0, Block(codes[:, : 128 * form.bits], scales, zeros, shifts=shifts))
    spec, x = StoredSpec(storage, False, "bfloat16", "cuda"), torch.randn(rows, 1024, device="cuda").bfloat16()
    got, want = triton_stored_linear(x, data, None, spec), stored_linear(x.float(), data, None, spec)
    takes = narrowed.takes(Weight(storage, data), rows)
    assert not form.zeros or not takes
    may = 4e-2 if takes and rows > 1 else 6e-3
    assert (got.float() - want).norm() / want.norm() < may


@pytest.mark.parametrize("rows", [1, 16, 200])
@pytest.mark.parametrize("name", ["fp8", "int8", "int4", "nvfp4"])
def test_rows_need_not_end_with_a_run(name, rows):
    storage, data = weight(name, inputs=880)
    x = torch.randn(rows, 880, device="cuda").bfloat16()
    spec = StoredSpec(storage, False, "bfloat16", "cuda")
    got, want = triton_stored_linear(x, data, None, spec), stored_linear(x.float(), data, None, spec)
    assert (got.float() - want).norm() / want.norm() < 4e-2


@pytest.mark.parametrize("rows", [1, 16, 200])
@pytest.mark.parametrize("name", ["fp8", "int4", "nvfp4"])
def test_gates_are_part_of_the_product(name, rows):
    storage, data = weight(name)
    x = torch.randn(rows, INPUTS, device="cuda").bfloat16()
    gate = GateSpec(OUTPUTS // 2, "silu", "bfloat16", "cuda")
    spec = StoredGateSpec(StoredSpec(storage, False, "bfloat16", "cuda"), gate)
    got, want = triton_stored_gate_up(x, data, None, spec), stored_gate_up(x.float(), data, None, spec)
    assert (got.float() - want).norm() / want.norm() < 5e-2


@pytest.mark.parametrize("rows", [1, 8])
def test_float16_is_read_as_well(rows):
    for name in ("int4", "nvfp4", "fp8 groups"):
        storage, data = weight(name, "float16")
        x = torch.randn(rows, INPUTS, device="cuda").half()
        spec = StoredSpec(storage, False, "float16", "cuda")
        want = stored_linear(x.float(), data, None, spec)
        assert (triton_stored_linear(x, data, None, spec).float() - want).norm() / want.norm() < 2e-3


@pytest.mark.parametrize("rows", [1, 2, 130])
@pytest.mark.parametrize("name", ["fp8", "int8", "int4", "nvfp4"])
def test_nan_spoils_its_row_and_no_other(name, rows):
    # Interpreted maxima let NaN through by themselves, a GPU's do not.
    storage, data = weight(name)
    x = torch.randn(rows, INPUTS, device="cuda").bfloat16()
    x[0, 5] = float("nan")
    x[-1] = float("nan")
    got = triton_stored_linear(x, data, None, StoredSpec(storage, False, "bfloat16", "cuda"))
    spoiled = got.isnan().all(1).tolist()
    assert spoiled == [row in (0, rows - 1) for row in range(rows)]
