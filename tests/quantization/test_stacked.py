"""Products with a matrix whose parts are stored each in its own way: what they give, and an op of its own for each."""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from quire.layers.stacked import beside  # noqa: E402
from quire.ops.linear import linear  # noqa: E402
from quire.ops.registry import Op  # noqa: E402
from quire.ops.samples import normal  # noqa: E402
from quire.ops.stored import StoredSpec, stored_linear  # noqa: E402
from quire.quantization.scaled import Form, Scaled  # noqa: E402
from quire.quantization.stacked import Plain, Stacked  # noqa: E402


@pytest.mark.parametrize("bias", [False, True])
def test_each_part_has_an_op_of_its_own(bias: bool) -> None:
    parts = Scaled.of(24, 64, Form("fp8_e4m3", None), "float32", "cpu"), Plain(3, 64, "float32", "cpu")
    stack = Stacked((*parts, Scaled.of(8, 64, Form("uint4b8", 32), "float32", "cpu")))
    weight = stack.allocate()
    stack.put(weight, 0, normal("float32", stack.outputs, 64))
    spec, chosen = StoredSpec(stack, bias), []

    def choose(op: Op, own: Any) -> Callable[..., Any]:
        chosen.append((op.name, own.bias, own.storage if isinstance(own, StoredSpec) else own.outputs))
        return op.reference

    product = beside(stack, spec, choose)
    assert chosen == [
        (stored_linear.name, bias, parts[0]),
        (linear.name, bias, 3),
        (stored_linear.name, bias, stack.members[2]),
    ]
    x, added = normal("float32", 5, 64, seed=1), normal("float32", stack.outputs, seed=2) if bias else None
    torch.testing.assert_close(product(x, weight, added, spec), stored_linear(x, weight, added, spec))
