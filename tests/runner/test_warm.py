"""Steps that run once before the engine is ready leave nothing behind."""

import gc
import weakref

import pytest

from quire import LLM, SamplingParams
from quire.checkpoint.read import read_facts
from quire.config.sources import engine_config
from quire.config.step_sizes import warm_tokens
from quire.engine import begin
from quire.runner.generation import GenerationSteps
from quire.sampling.sampler import Sampler
from tests.engine.settings import resolved
from tests.engine.toy import make_toy, oracle

pytestmark = pytest.mark.torch


def test_warm_steps_leave_nothing_behind(tmp_path, monkeypatch):
    resolved(monkeypatch, warm_tokens=[2, 9, 300], graph_rows=[2])
    with LLM(str(make_toy(tmp_path)), num_gpu_blocks_override=100, block_size=4) as llm:
        rows = llm._running().executor.runner.allocated.steps.rows
        assert not rows.computed[rows.dummy]
        assert not rows.host
        outputs = llm.generate([[5, 6], [7]], SamplingParams(max_tokens=9, temperature=0.0, ignore_eos=True))
    assert [output.outputs[0].token_ids for output in outputs] == [oracle([5, 6], 9), oracle([7], 9)]


def test_edited_logits_are_drawn_from_in_both_ways(tmp_path, monkeypatch):
    """They are float32 where the model's are not: other kernels of the same ops."""
    resolved(monkeypatch, warm_tokens=[3], graph_rows=[2])
    random, draw = set(), Sampler._draw_edited

    def note(self, logits, part, *rest):
        random.add(bool(part.groups))
        draw(self, logits, part, *rest)

    monkeypatch.setattr(Sampler, "_draw_edited", note)
    with LLM(str(make_toy(tmp_path)), num_gpu_blocks_override=100, block_size=4):
        assert random == {True, False}


def test_what_is_released_needs_no_collector(tmp_path, monkeypatch):
    resolved(monkeypatch, warm_tokens=[3], graph_rows=[1, 2])
    with LLM(str(make_toy(tmp_path)), num_gpu_blocks_override=100, block_size=4) as llm:
        runner = llm._running().executor.runner
        steps, layout = runner.allocated.steps, runner.allocated.layout
        assert steps.graphs.covers(2)
        held = [weakref.ref(x) for x in (steps.rows, steps.sampler, steps.graphs, steps.ragged)]
        del steps
        gc.collect()
        gc.disable()
        try:
            runner.release()
            assert [ref() for ref in held] == [None] * 4
        finally:
            gc.enable()
        runner.allocate(layout)


@pytest.mark.parametrize("rows", [1, 256])
def test_the_step_that_is_measured_is_as_large_as_any(tmp_path, monkeypatch, rows):
    """On a CPU a step may take three times as long; here a token takes a second."""
    now, launch = [0.0], GenerationSteps.launch

    def slowly(self, plan):
        now[0] += sum(grant.tokens for grant in plan.grants)
        return launch(self, plan)

    monkeypatch.setattr(GenerationSteps, "launch", slowly)
    folder = make_toy(tmp_path, context=512)
    config = engine_config(model=str(folder), max_num_seqs=rows, max_num_batched_tokens=300)
    timeline = begin.Timeline(clock=lambda: now[0])
    core = begin.begin(config, read_facts("toy", folder), lambda done, total: None, timeline)
    core.close()
    assert core.patience_s == 3 * 300


def test_sizes_lie_beyond_powers_of_two():
    assert warm_tokens(512) == [3, 5, 9, 17, 33, 65, 129, 257]
    assert warm_tokens(8192)[-2:] == [2049, 4097]
    assert warm_tokens(1) == [1]
