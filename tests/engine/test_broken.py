"""Faults of the engine: a step that fails ends an `LLM` for good, which says so and gives back what its ranks held."""

import weakref
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from torch import nn, ones

from quire import LLM, SamplingParams
from quire.base.collector import collector_paused
from quire.base.errors import EngineDeadError, EngineError
from quire.engine.core import EngineCore
from quire.messages.structured import StructuredOutputsParams
from quire.structured import checker
from tests.engine.toy import make_toy

pytestmark = pytest.mark.torch

PARAMS = SamplingParams(max_tokens=4, ignore_eos=True)


@pytest.fixture
def llm(tmp_path: Path) -> Iterator[LLM]:
    with LLM(str(make_toy(tmp_path / "toy")), num_gpu_blocks_override=8, device="cpu") as made:
        yield made


def core_of(llm: LLM) -> EngineCore:
    assert llm._core is not None
    return llm._core


def test_an_interrupt_passes_through_and_ends_the_engine(llm: LLM) -> None:
    executor = core_of(llm).executor
    with (
        mock.patch.object(executor, "step", side_effect=KeyboardInterrupt),
        mock.patch.object(executor, "stop", wraps=executor.stop) as stop,
        pytest.raises(KeyboardInterrupt),
    ):
        llm.generate([[1, 2]], PARAMS)
    stop.assert_called_once()
    with pytest.raises(EngineError, match="has failed"):
        llm.generate([[1, 2]], PARAMS)


def test_a_device_that_cannot_be_left_does_not_hide_what_broke_it(llm: LLM) -> None:
    executor = core_of(llm).executor
    with (
        mock.patch.object(executor, "step", side_effect=RuntimeError("broken")),
        mock.patch.object(executor, "stop", side_effect=RuntimeError("still broken")),
        pytest.raises(EngineDeadError, match="RuntimeError: broken"),
    ):
        llm.generate([[1, 2]], PARAMS)


def test_memory_is_given_back_without_the_collector_and_while_the_error_is_kept(llm: LLM) -> None:
    runner = core_of(llm).executor.runner
    weight = nn.Parameter(ones(8), requires_grad=False)
    runner.loaded.model.register_parameter("weight", weight)
    pools = [weakref.ref(pool) for state in runner.build.states for pool in state.pools]
    with (
        mock.patch("quire.executors.inline.gc"),
        mock.patch.object(runner.allocated.steps, "_drawn", side_effect=RuntimeError("broken")),
        pytest.raises(EngineDeadError) as failed,
    ):
        llm.generate([[1, 2]], PARAMS)
    assert pools and all(pool() is None for pool in pools), failed.value
    assert not weight.numel()


def test_an_engine_that_is_closed_waits_for_no_collector(llm: LLM) -> None:
    runner = core_of(llm).executor.runner
    gone = [weakref.ref(each) for each in (runner, runner.allocated.steps, runner.loaded.model)]
    del runner
    with mock.patch("quire.executors.inline.gc"), collector_paused():
        llm.close()
        assert [each() for each in gone] == [None] * 3


def test_a_plan_in_flight_that_fails_keeps_no_rank_from_its_end(llm: LLM) -> None:
    core = core_of(llm)
    broken = mock.Mock(**{"result.side_effect": RuntimeError("broken")})
    core.in_flight.append((mock.Mock(), broken, 0.0))
    with (
        mock.patch.object(core.executor, "stop", wraps=core.executor.stop) as stop,
        pytest.raises(RuntimeError, match="broken"),
    ):
        llm.close()
    stop.assert_called_once()
    assert not core.in_flight


def test_a_grammar_checker_that_cannot_be_begun_is_the_engines_fault(llm: LLM) -> None:
    params = SamplingParams(max_tokens=4, structured_outputs=StructuredOutputsParams(regex="a+"))
    with (
        mock.patch.object(checker.subprocess, "Popen", side_effect=OSError("no more processes")),
        pytest.raises(EngineError, match="the engine failed"),
    ):
        llm.generate([[1, 2]], params)
    assert llm.generate([[1, 2]], PARAMS)[0].finished
