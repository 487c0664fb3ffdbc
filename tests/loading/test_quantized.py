"""Where the parts of a quantized matrix go: neighbours that are alike share a storage."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from quire.loading.quantized import Place, place
from quire.loading.recipe import Part
from quire.ops.stored import ARRANGES
from quire.quantization.checkpoint import Quantized
from quire.quantization.scaled import Form, Scaled
from quire.quantization.scheme import Block, Matrix, Scheme
from quire.quantization.stacked import Plain, Stacked
from quire.quantization.words import Words

pytestmark = pytest.mark.torch

HERE = Place(0, 1, "float32", "cpu", ())


class Announced(Quantized):
    """Says that matrices whose names begin with q are in 8 bits, and with b in blocks of 4 rows."""

    def __init__(self) -> None:
        pass

    def scheme(self, matrix: Matrix) -> Scheme | None:
        form = {"q": Form("fp8_e4m3", None), "b": Form("fp8_e4m3", 16, row_block=4)}.get(matrix.module[0])
        return None if form is None else Scheme(form, (f"{matrix.module}.weight",), _read)

    def online(self, matrix: Matrix) -> Form | None:
        return None


def _read(*_: object) -> Block:
    raise AssertionError("nothing is read")


def placed(*names: str, rows: Callable[[str], int] = lambda name: 4) -> tuple[object, list[tuple[int, int]]]:
    found = place([Part(f"{name}.weight", (rows(name), 32), 0) for name in names], Announced(), HERE)
    assert found is not None
    storage, held = found
    return storage, [(one.start, one.first) for one in held]


def test_parts_that_are_all_alike_are_one_matrix() -> None:
    storage, held = placed("q0", "q1", "q2")
    assert isinstance(storage, Scaled) and storage.outputs == 12
    assert held == [(0, 0), (0, 4), (0, 8)]


def test_neighbours_that_are_alike_are_one_member() -> None:
    storage, held = placed("q0", "q1", "p0", "p1", "q2")
    assert isinstance(storage, Stacked)
    assert [(type(member), member.outputs) for member in storage.members] == [(Scaled, 8), (Plain, 8), (Scaled, 4)]
    first, second, third = storage.starts()
    assert held == [(first, 0), (first, 4), (second, 0), (second, 4), (third, 0)]


def test_members_are_arranged_as_a_kernel_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARRANGES, "a kernel", Words.like)
    found = place(
        [Part(f"{name}.weight", (4, 32), 0) for name in ("q0", "p0")],
        Announced(),
        replace(HERE, providers=("a kernel",)),
    )
    assert found is not None
    storage, held = found
    assert isinstance(storage, Stacked)
    assert [type(member) for member in storage.members] == [Words, Plain]
    assert [one.storage for one in held] == list(storage.members)


def test_blocks_of_rows_are_not_joined_within_a_block() -> None:
    storage, held = placed("b0", "b1", "b2", rows=lambda name: 6 if name == "b1" else 4)
    assert isinstance(storage, Stacked)
    assert [member.outputs for member in storage.members] == [4, 6, 4]
    assert torch.tensor(held)[:, 1].eq(0).all()
