"""Dense Triton kernels on a real GPU: right, the same in every run, and safe when launched before their turn."""

import dataclasses
import itertools

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

if torch.cuda.is_available():
    from quire.kernels.triton.dense import gemv, norm, skinny
    from quire.kernels.triton.dense.activation import MANY, triton_gated_activation
    from quire.kernels.triton.dense.linear import triton_linear, triton_norm_gate_up, triton_norm_linear
    from quire.kernels.triton.dense.norm import triton_add_rms_norm
    from quire.kernels.triton.launch import device_of
    from quire.ops.activation import GateSpec, gated_activation
    from quire.ops.block import NormGateSpec, NormLinearSpec
    from quire.ops.linear import LinearSpec
    from quire.ops.norm import NormSpec

ROWS = (1, 3, 16, 17, 40, 64, 100, 128)


def normal(*shape, scale=1.0):
    return (torch.randn(shape, device="cuda") * scale).bfloat16()


def poisoned():
    """Leave NaN in memory that the next allocations get."""
    blocks = [torch.full((1 << n,), float("nan"), device="cuda") for n in range(8, 22)]
    torch.cuda.synchronize()
    del blocks


@pytest.mark.parametrize(("inputs", "outputs"), [(1024, 1024), (200, 72), (3072, 512)])
@pytest.mark.parametrize("rows", ROWS)
def test_products_equal_float64_in_every_run(rows, inputs, outputs):
    x, weight, bias = normal(rows, inputs), normal(outputs, inputs, scale=inputs**-0.5), normal(outputs)
    spec = LinearSpec(inputs, outputs, True, "bfloat16", "cuda")
    poisoned()
    out = triton_linear(x, weight, bias, spec)
    exact = x.double() @ weight.double().T + bias.double()
    assert (out.double() - exact).norm() / exact.norm() < 4e-3
    assert all(torch.equal(triton_linear(x, weight, bias, spec), out) for _ in range(5))


def test_gates_of_long_rows():
    spec = GateSpec(9000, "silu", "bfloat16", "cuda")
    for rows in (MANY - 1, MANY):
        gate_up = normal(rows, 2 * spec.inner)
        expected = gated_activation.reference(gate_up, spec)
        torch.testing.assert_close(triton_gated_activation(gate_up, spec), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("rows", ROWS)
def test_a_bad_row_spoils_no_other(rows):
    x, weight = normal(rows + 1, 512)[:rows], normal(256, 512)
    spec = LinearSpec(512, 256, False, "bfloat16", "cuda")
    out = triton_linear(x, weight, None, spec)
    for row, value in itertools.product({0, rows - 1}, (float("nan"), float("inf"))):
        spoiled = x.clone()
        spoiled[row] = value
        others = torch.arange(rows, device="cuda") != row
        again = triton_linear(spoiled, weight, None, spec)
        assert torch.equal(again[others], out[others]) and not torch.isfinite(again[row]).any()


class Chain:
    """Layers without attention that feed each other, so that every kernel needs the one before it."""

    def __init__(self, hidden=1024, inner=3072, layers=6):
        self.norm = NormSpec(hidden, 1e-6, 0.0, "bfloat16", "cuda")
        shapes = [(hidden, hidden), (2 * inner, hidden), (hidden, inner)]
        self.specs = [LinearSpec(k, n, False, "bfloat16", "cuda") for n, k in shapes]
        self.weights = [[normal(n, k, scale=k**-0.5) for n, k in shapes] for _ in range(layers)]
        self.scale, self.gate = 1 + normal(hidden, scale=0.1), GateSpec(inner, "silu", "bfloat16", "cuda")

    def run(self, residual):
        delta = torch.zeros_like(residual)
        first, second, third = self.specs
        for mixed, gate_up, down in self.weights:
            if len(residual) == 1:
                spec = NormLinearSpec(self.norm, first)
                delta, residual = triton_norm_linear(residual, delta, self.scale, mixed, None, spec)
            else:
                normed, residual = triton_add_rms_norm(residual, delta, self.scale, self.norm)
                delta = triton_linear(normed, mixed, None, first)
            spec = NormGateSpec(self.norm, second, self.gate)
            gated, residual = triton_norm_gate_up(residual, delta, self.scale, gate_up, None, spec)
            delta = triton_linear(gated, down, None, third)
        return residual + delta


@pytest.mark.parametrize("rows", [1, 8, 64])
def test_early_launches_change_nothing(rows, monkeypatch):
    chain, x = Chain(), normal(rows, 1024)
    device = dataclasses.replace(device_of(x.device), dependent=False)
    with monkeypatch.context() as patch:
        for kernels in (gemv, norm, skinny):
            patch.setattr(kernels, "device_of", lambda _: device)
        plain = chain.run(x)
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        assert torch.equal(chain.run(x), plain)
    stream.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        out = chain.run(x)
    for _ in range(50):
        out.fill_(float("nan"))
        graph.replay()
        assert torch.equal(out, plain)
