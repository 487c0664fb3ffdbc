"""Recorded decode steps, played without a device's graphs: padding and reuse of buffers change nothing."""

from contextlib import nullcontext

import pytest
import torch

from quire import LLM, SamplingParams
from quire.config.step_sizes import graph_rows
from quire.messages.structured import StructuredOutputsParams
from quire.runner import graphs, loaded
from quire.sampling.batch import DrawMode
from quire.sampling.kernels import Kernels
from quire.sampling.sampler import Sampler
from tests.engine.settings import resolved
from tests.engine.toy import make_toy, oracle

pytestmark = pytest.mark.torch


class Noted:
    """A model, and how many lines of hidden states its steps with prompts and its logits were computed for."""

    def __init__(self, model):
        self.model, self.lines = model, []

    def __call__(self, step):
        self.lines += [step.ends] if step.ends else []
        return self.model(step)

    def logits(self, hidden):
        self.lines.append(len(hidden))
        return self.model.logits(hidden)


@pytest.mark.parametrize("sizes", [[1, 2, 4, 8], [5], [3, 8]])
@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize("state", [{}, {"window": 9}, {"recurrent": True}], ids=str)
def test_padding_changes_nothing(tmp_path, monkeypatch, sizes, overlapped, state):
    resolved(monkeypatch, graph_rows=sizes)
    folder = make_toy(tmp_path, **state)
    prompts = [[i, i + 1, i + 2] * (i + 1) for i in range(8)]
    params = [SamplingParams(max_tokens=5 + 3 * i, temperature=0.0, ignore_eos=True) for i in range(8)]
    settings = {"num_gpu_blocks_override": 100, "block_size": 4, "max_num_seqs": 8, "async_scheduling": overlapped}
    with LLM(str(folder), **settings) as llm:
        steps = llm._running().executor.runner.allocated.steps
        decode, steps.passes.model = steps.graphs, (noted := Noted(steps.passes.model))
        assert decode.covers(sizes[-1]) and not decode.covers(sizes[-1] + 1)
        outputs = llm.generate(prompts, params)
        assert decode._playing is not None, "nothing was played"
        assert noted.lines and all(lines in sizes or lines > sizes[-1] for lines in noted.lines)
    for prompt, p, output in zip(prompts, params, outputs, strict=True):
        assert output.outputs[0].token_ids == oracle(prompt, p.max_tokens, **state)


DRAWN = ({}, {"top_k": 5}, {"top_p": 0.7}, {"temperature": 0.0}, {"min_p": 0.1})
EDITED = (
    {"presence_penalty": 0.5, "repetition_penalty": 1.3},
    {"frequency_penalty": 0.7, "temperature": 0.0, "logprobs": 2},
    {"logit_bias": {5: 3.0, 9: -100.0}, "top_p": 0.8},
    {"min_tokens": 6, "stop_token_ids": [3, 4, 5], "logprobs": 20},
    {"allowed_token_ids": [5, 6, 7], "logprobs": 0},
)
ASKING = ({"logits_processors": [lambda ids, logits: -logits]}, {"logprobs": 21})
"""Those that need the host."""


@pytest.mark.parametrize(
    "kinds, draw_mode", [(DRAWN, DrawMode.RANDOM), (DRAWN + EDITED, DrawMode.EDITED), (EDITED + ASKING, None)]
)
def test_recorded_draws_are_those_of_steps_that_are_not_recorded(tmp_path, monkeypatch, kinds, draw_mode):
    """Rows come and go meanwhile, since there are more requests than rows."""
    params = [
        SamplingParams(max_tokens=9 + 2 * i, ignore_eos=True, seed=i, **kinds[i % len(kinds)])
        for i in range(len(kinds) + 4)
    ]

    def generated() -> list[object]:
        with LLM(str(folder), num_gpu_blocks_override=100, block_size=4, max_num_seqs=12, max_logprobs=21) as llm:
            drawn.append(ways_of(llm, monkeypatch))
            outputs = llm.generate([[i, i + 1, i + 2] for i in range(len(params))], params)
            return [(output.outputs[0].token_ids, output.outputs[0].logprobs) for output in outputs]

    folder = make_toy(tmp_path)
    drawn: list[list[DrawMode]] = []
    monkeypatch.setattr(loaded, "choose_kernels", lambda *given: Kernels(recordable=True))
    plain = generated()
    resolved(monkeypatch, graph_rows=[1, 4, 12])
    assert generated() == plain
    assert not drawn[0]
    assert draw_mode is None or drawn[1].count(draw_mode) > 8


def ways_of(llm: LLM, monkeypatch) -> list[DrawMode]:
    """The ways in which recordings have drawn, which grows from now on."""
    graphs, ways = llm._running().executor.runner.allocated.steps.graphs, []
    monkeypatch.setattr(
        graphs, "draw", lambda draw_mode, count: ways.append(draw_mode) or type(graphs).draw(graphs, draw_mode, count)
    )
    return ways


@pytest.mark.parametrize("overlapped", [False, True])
def test_grammars_are_drawn_for_in_recordings(monkeypatch, overlapped):
    """Beside rows without one, more rows than a recording has, and one whose grammar ends."""
    forms = ["[a-z]{5,20}", "[0-9]+ (cats|dogs)", None, "a{40}", "x?"]
    params = [
        SamplingParams(max_tokens=16, seed=i, structured_outputs=form and StructuredOutputsParams(regex=form))
        for i, form in enumerate(forms)
    ]

    def texts() -> list[str]:
        settings = {"num_gpu_blocks_override": 100, "max_num_seqs": 8, "async_scheduling": overlapped}
        with LLM(load_format="dummy", dtype="float32", **settings) as llm:
            drawn.append(ways_of(llm, monkeypatch))
            return [output.outputs[0].text for output in llm.generate(["Once"] * len(forms), params)]

    drawn: list[list[DrawMode]] = []
    plain = texts()
    assert not drawn[0]
    resolved(monkeypatch, graph_rows=[1, 3, 6, 8])
    monkeypatch.setattr(loaded, "choose_kernels", lambda *given: Kernels(recordable=True))
    assert texts() == plain
    assert drawn[1].count(DrawMode.EDITED) > 8


def test_a_kernel_that_asks_the_host_is_not_recorded(monkeypatch):
    """Nor do tables take memory for recordings, whatever the sampler's own kernels can do; no prompt waits for one."""
    stayed = []
    monkeypatch.setattr(Sampler, "stay", stayed.append)
    resolved(monkeypatch, graph_rows=[4], graph_singles=[0], graph_tokens=[8])
    monkeypatch.setattr(loaded, "choose_kernels", lambda *given: Kernels(recordable=True))
    with LLM(num_gpu_blocks_override=100, kernels="reference") as llm:
        assert not llm._running().executor.runner.allocated.steps.graphs.covers(1)
        assert not llm._running().scheduler.limits.recorded_tokens
    assert not stayed


def test_what_broke_a_recording_is_raised(monkeypatch):
    class Broken:
        def capture_begin(self, *given, **named):
            pass

        def capture_end(self):
            raise RuntimeError("the recording is invalid")

    def work():
        runs.append(1)
        assert len(runs) < 2, "no memory"

    runs: list[int] = []
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Broken)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(graphs, "_stream", lambda device: object())
    with pytest.raises(AssertionError, match="no memory"):
        graphs.Recorder(torch.device("cuda")).record("decode", work)


def test_sizes_are_dense_where_rows_count():
    assert graph_rows(1) == [1]
    assert graph_rows(16) == [1, 2, 4, 8, 16]
    assert graph_rows(100) == [1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 100]
    assert graph_rows(700)[-4:] == [432, 512, 640, 700]
    assert graph_rows(1024) == sorted(set(graph_rows(1024)))
