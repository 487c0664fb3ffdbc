"""What ranks that share a model decide together."""

import pytest
import torch

from quire.parallel.mesh import Mesh
from quire.runner.runner import Runner

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("others", [0, 1])
def test_steps_are_recorded_by_all_ranks_or_by_none(others: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are chosen for a rank's own share of the weights."""
    monkeypatch.setattr(Mesh, "all_reduce", lambda self, x: x + others)
    runner = object.__new__(Runner)
    runner.mesh, runner.device = Mesh(), torch.device("cpu")
    assert runner._everywhere(True) is (not others)
    assert not runner._everywhere(False)
