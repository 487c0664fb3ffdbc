"""Sizes over ranks, and that a mesh of one needs no torch.distributed."""

import pytest
import torch

from quire.base.errors import ConfigError
from quire.parallel.mesh import Mesh

pytestmark = pytest.mark.torch


def test_a_mesh_of_one_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch, "distributed")
    mesh, x = Mesh(), torch.ones(2, 3)
    assert mesh.all_reduce(x) is x and mesh.all_gather(x) is x and mesh.broadcast(x) is x
    assert mesh.split(7) == 7 and mesh.copies(3) == 1 and mesh.padded(97) == 97


def test_what_does_not_divide_is_refused_by_name() -> None:
    assert Mesh(1, 2).split(8) == 4
    with pytest.raises(ConfigError, match=r"tensor_parallel_size=2 does not divide num_attention_heads=7"):
        Mesh(0, 2).split(7, "num_attention_heads")


@pytest.mark.parametrize(("size", "heads", "copies"), [(2, 8, 1), (4, 4, 1), (4, 2, 2), (8, 1, 8)])
def test_kv_heads_are_copied_where_ranks_outnumber_them(size: int, heads: int, copies: int) -> None:
    assert Mesh(0, size).copies(heads) == copies


@pytest.mark.parametrize(("size", "heads"), [(2, 3), (3, 2)])
def test_kv_heads_that_fit_no_rank_are_refused(size: int, heads: int) -> None:
    with pytest.raises(ConfigError, match="num_key_value_heads"):
        Mesh(0, size).copies(heads)


def test_the_vocabulary_is_padded_up() -> None:
    assert Mesh(0, 2).padded(97) == 98 and Mesh(0, 4).padded(96) == 96
