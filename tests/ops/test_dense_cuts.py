"""How dense Triton kernels cut their work, by the interpreter: more ways than the samples of the ops reach."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from quire.ops.samples import normal
from tests.ops.triton import needs_interpreter

pytestmark = [
    pytest.mark.torch,
    needs_interpreter,
]

ACTIVATIONS = {"silu": F.silu, "gelu_tanh": lambda gate: F.gelu(gate, approximate="tanh")}


def expected(x: Tensor, weight: Tensor, bias: Tensor | None, gate: str) -> Tensor:
    out = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    if gate:
        half = len(weight) // 2
        out = ACTIVATIONS[gate](out[:, :half]) * out[:, half:]
    return out


def inputs(rows: int, size: int, outputs: int, gate: str, bias: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    outputs *= 2 if gate else 1
    weight = normal("bfloat16", outputs, size, seed=1) / size**0.5
    return normal("bfloat16", rows, size), weight, normal("bfloat16", outputs, seed=2) if bias else None


@pytest.mark.parametrize("gate", ["", "silu"])
@pytest.mark.parametrize(
    ("rows", "size", "outputs", "cut"),
    [
        (3, 96, 24, (16, 16, 16, 3, 2, 4, 2)),  # parts that are held whole
        (16, 64, 32, (32, 16, 16, 2, 2, 4, 1)),  # held, then pipelined
        (7, 100, 20, (16, 16, 32, 2, 2, 4, 0)),  # a last part that is short
        (5, 72, 16, (16, 16, 16, 4, 2, 4, 1)),  # uneven parts, one step held
        (40, 64, 24, (16, 64, 32, 2, 2, 4, 0)),  # the rows on the long side
        (128, 32, 16, (16, 128, 32, 1, 2, 4, 1)),
    ],
)
def test_a_product_of_few_rows_in_any_cut(rows: int, size: int, outputs: int, cut: tuple[int, ...], gate: str) -> None:
    from quire.kernels.triton.dense import skinny

    x, weight, bias = inputs(rows, size, outputs, gate, bias=rows % 2 == 1)
    for _ in range(2):  # the counters are 0 again after the first
        out = skinny.product(x, weight, bias, gate, skinny.Tiling(*cut))
        torch.testing.assert_close(out.float(), expected(x, weight, bias, gate), rtol=1.6e-2, atol=1e-2)
    assert not skinny.counters_of(x.device).any()


@pytest.mark.parametrize("gate", ["", "gelu_tanh"])
@pytest.mark.parametrize(
    "cut",
    [(4, 32, 1, 4), (8, 32, 3, 4), (2, 64, 2, 4), (16, 128, 1, 4), (4, 16, 0, 4), (8, 256, 1, 4), (4, 16, 1, 4, 4)],
)
def test_a_product_of_one_row_in_any_shape(cut: tuple[int, ...], gate: str) -> None:
    from quire.kernels.triton.dense import gemv

    x, weight, bias = inputs(1, 96, 20, gate, bias=True)
    out = gemv.product(x, weight, bias, gate, shape=gemv.Shape(*cut))
    torch.testing.assert_close(out.float(), expected(x, weight, bias, gate), rtol=1.6e-2, atol=1e-2)


@pytest.mark.parametrize("shared", [48 << 10, 64 << 10, 99 << 10, 163 << 10, 227 << 10])
def test_a_cut_fits_into_shared_memory(shared: int) -> None:
    from quire.kernels.triton.dense import skinny

    for outputs, size in ((4096, 1024), (1024, 3072), (14336, 4096), (4096, 14336), (72, 200)):
        for rows in (2, 17, 33, 128):
            for gate in (False, True):
                cut = skinny.fitted(skinny.tiling(outputs, size, rows, gate, torch.device("cpu")), size, gate, shared)
                steps = -(-size // (cut.depth * cut.parts))
                width = cut.outputs * (2 if gate else 1)
                held = cut.held * width + (cut.rows * cut.held if cut.held == steps else 0)
                flying = cut.stages * (width + cut.rows) if steps > cut.held else 0
                assert 2 * cut.depth * (held + flying) <= shared and cut.rows >= rows and cut.depth >= 16
