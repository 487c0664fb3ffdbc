"""What each rank takes of a checkpoint tensor."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quire.loading.recipe import Part, Recipe, Weight

pytestmark = pytest.mark.torch


def rows_of(part: Part, rank: int, size: int) -> list[int]:
    """The rows (or columns) of the cut dimension that a rank holds; -1 is padding."""
    span = part.spans(rank, size)[part.cut or 0]
    return [*range(span.start, span.start + span.length), *[-1] * span.zeros]


def test_a_cut_gives_every_rank_its_run() -> None:
    part = Part("w", (8, 3), cut=0)
    assert [rows_of(part, rank, 2) for rank in range(2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert part.taken(1, 2) == (4, 3)
    assert Part("w", (3, 8), cut=1).taken(1, 4) == (3, 2)


def test_without_a_cut_every_rank_has_all() -> None:
    assert Part("w", (5,)).taken(1, 2) == (5,)


def test_a_fused_tensor_is_cut_part_by_part() -> None:
    up = Part("w", (12, 3), cut=0, first=8, rows=4)
    assert [rows_of(up, rank, 2) for rank in range(2)] == [[8, 9], [10, 11]]


def test_copies_give_neighbours_the_same() -> None:
    part = Part("k", (4, 3), cut=0, copies=2)
    assert [rows_of(part, rank, 4) for rank in range(4)] == [[0, 1], [0, 1], [2, 3], [2, 3]]


def test_once_leaves_the_other_ranks_zeros() -> None:
    part = Part("b", (3,), once=True)
    assert [rows_of(part, rank, 2) for rank in range(2)] == [[0, 1, 2], [-1, -1, -1]]


@given(vocab=st.integers(1, 40), size=st.integers(1, 9))
def test_padding_makes_any_vocabulary_divide(vocab: int, size: int) -> None:
    pad = -vocab % size
    part = Part("e", (vocab, 2), cut=0, pad=pad)
    rows = [row for rank in range(size) for row in rows_of(part, rank, size)]
    assert rows == [*range(vocab), *[-1] * pad]
    assert {part.taken(rank, size) for rank in range(size)} == {((vocab + pad) // size, 2)}


def test_a_recipe_stacks_its_parts() -> None:
    recipe = Recipe((Part("q", (8, 3), cut=0), Part("k", (2, 3), cut=0, copies=2)))
    assert recipe.shape(0, 2) == (4 + 2, 3)


def test_a_weight_is_a_parameter_without_gradient() -> None:
    weight = Weight(torch.zeros(2), Recipe((Part("w", (2,)),)))
    assert isinstance(weight, torch.nn.Parameter) and not weight.requires_grad
    assert type(weight + 1) is torch.Tensor


def test_neighbouring_pairs_become_halves() -> None:
    part = Part("q", (16, 1), halves=(8, 6))
    assert part.is_changed and part.unit == 8
    rows = part.changed(torch.arange(16.0)[:, None])[:, 0].tolist()
    assert rows == [0, 2, 4, 1, 3, 5, 6, 7, 8, 10, 12, 9, 11, 13, 14, 15]


def test_an_offset_is_added_in_float32() -> None:
    values = torch.tensor([0.001], dtype=torch.bfloat16)
    changed = Part("n", (1,), plus=1.0).changed(values)
    assert changed.dtype == torch.float32 and changed.item() == 1 + values.float().item()
    assert not Part("n", (1,)).is_changed
