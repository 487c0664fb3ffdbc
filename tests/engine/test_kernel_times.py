"""`quire bench kernels` on a tiny model: every op of the step, timed once for each provider that can serve it."""

from pathlib import Path

import pytest

from quire.checkpoint.read import read_facts
from quire.config.sources import engine_config
from quire.engine.kernel_times import measure
from tests.models import checkpoints

pytestmark = pytest.mark.torch


def test_every_op_of_a_step_is_timed(tmp_path: Path) -> None:
    folder = checkpoints.make("qwen3", tmp_path)
    config = engine_config(model=str(folder), load_format="dummy", device="cpu", kernels="torch_native")
    reports = {(str(r["op"]), r["calls"]): r for r in measure(config, read_facts("x", folder), 3, 2, 9)}
    ops = {op for op, _ in reports}
    assert "step_inputs" in ops and len(ops) > 4
    for report in reports.values():
        times = report["us"]
        assert isinstance(times, dict) and report["provider"] in times
        assert all(us > 0 for us in times.values())
    # 3 sequences of 2 tokens in each of 2 layers.
    assert any(calls == 2 and shapes_of(report)[0][0] == 6 for (_, calls), report in reports.items())


def test_a_deterministic_engine_is_timed_by_its_own_kernels(tmp_path: Path) -> None:
    folder = checkpoints.make("qwen3", tmp_path)
    config = engine_config(
        model=str(folder), load_format="dummy", device="cpu", kernels="torch_native", deterministic=True
    )
    timed = {(report["op"], report["provider"]) for report in measure(config, read_facts("x", folder), 1, 1, 1)}
    assert {("attend", "batch_invariant"), ("gated_activation", "batch_invariant")} <= timed


def shapes_of(report: dict[str, object]) -> list[list[int]]:
    shapes = report["shapes"]
    assert isinstance(shapes, list)
    return shapes
