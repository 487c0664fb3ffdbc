"""A first start runs its steps once for what they would compile, and computes like any other afterwards."""

from contextlib import contextmanager
from typing import ClassVar

import msgspec
import pytest
import torch

from quire import LLM, SamplingParams
from quire.config.resolve import resolve
from quire.engine import begin
from quire.ops import ahead
from quire.runner.generation import GenerationSteps
from quire.runner.rehearsal import _Zeros
from tests.engine.toy import make_toy, oracle

pytestmark = pytest.mark.torch


class Stage:
    """Stands in for what compiles; remembers in which order it was asked."""

    kept: ClassVar[set[str]] = set()

    def __init__(self, workers):
        assert workers >= 1
        self.asked = []
        stages.append(self)

    def knows(self, run):
        return run in self.kept

    def begin(self):
        self.asked.append("begin")

    @contextmanager
    def noting(self):
        self.asked.append("noting")
        yield
        self.asked.append("noted")

    def compile(self, run):
        self.asked.append("compile")
        self.kept.add(run)


stages: list[Stage] = []


@pytest.fixture
def compiled(monkeypatch):
    def chosen(*given):
        spec = resolve(*given)
        platform = msgspec.structs.replace(spec.platform, providers=["torch_native"])
        return msgspec.structs.replace(spec, platform=platform, warm_tokens=[2, 9], graph_rows=[2], graph_singles=[])

    monkeypatch.setattr(begin, "resolve", chosen)
    monkeypatch.setitem(ahead.AHEAD, "torch_native", Stage)
    monkeypatch.setattr(Stage, "kept", set())
    stages.clear()


@pytest.mark.parametrize("settings", [{}, {"num_gpu_blocks_override": 100}], ids=str)
def test_only_the_first_start_rehearses(compiled, tmp_path, settings, monkeypatch):
    folder = str(make_toy(tmp_path))
    played, launch = [], GenerationSteps._launch_recorded
    monkeypatch.setattr(
        GenerationSteps, "_launch_recorded", lambda steps, plan: played.append(plan) or launch(steps, plan)
    )
    for _ in range(2):
        with LLM(folder, block_size=4, cpu_memory_utilization=0.05, **settings) as llm:
            assert not llm._running().executor.runner.allocated.steps.rows.host
            assert not played, "a recording that is rehearsed is none"
            output = llm.generate([[5, 6]], SamplingParams(max_tokens=9, temperature=0.0, ignore_eos=True))
        assert output[0].outputs[0].token_ids == oracle([5, 6], 9)
        assert played
        played.clear()
    assert [stage.asked for stage in stages] == [["begin", "noting", "noted", "compile"], []]


def test_fresh_memory_is_zero_in_a_rehearsal():
    like = torch.ones(1000)
    with _Zeros():
        made = [torch.empty(1000), torch.empty_like(like), like.new_empty(1000), torch.empty((), dtype=torch.int32)]
    assert not any(x.any() for x in made)
