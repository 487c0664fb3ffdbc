"""Rows that begin alike: what kernels are told of them is true in every step, recorded or not, and reaches them."""

import pytest

from quire import LLM, SamplingParams
from tests.engine.settings import resolved, shared_early
from tests.engine.toy import make_toy, oracle

pytestmark = pytest.mark.torch

HEADS = [[h * 7 + i for i in range(20)] for h in range(2)]


class Watch:
    """Looks at the inputs of every step, before the model gets them."""

    def __init__(self):
        self.seen = []

    def __call__(self, model, inputs):
        (step,) = inputs
        for group in step.groups:
            if group.shared is None:
                continue
            number, tokens = group.shared.number.tolist(), group.shared.tokens.tolist()
            starts = (step.seq_lens - step.query_start.diff()).tolist()
            for n, t, start in zip(number, tokens, starts, strict=True):
                assert t % group.page_size == 0
                assert (n < 0) == (t == 0)
                assert t <= start, "a shared token is computed only now"
            for n in set(number) - {-1}:
                rows = [i for i, other in enumerate(number) if other == n]
                (depth,) = {tokens[i] for i in rows}
                pages = group.page_table[rows, : depth // group.page_size]
                assert (pages == pages[:1]).all() and (pages > 0).all(), "they do not begin alike"
                self.seen.append((len(rows), depth))
        if all(group.shared is None for group in step.groups):
            self.seen.append(None)


@pytest.mark.parametrize("sizes", [[], [2, 4, 8]], ids=["eager", "recorded"])
@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize("pages", [100, 26], ids=["roomy", "preempting"])
@pytest.mark.parametrize("window", [None, 9])
def test_kernels_are_told_who_begins_alike(tmp_path, monkeypatch, sizes, overlapped, pages, window):
    shared_early(monkeypatch)
    resolved(monkeypatch, graph_rows=sizes)
    folder = make_toy(tmp_path, window=window)
    prompts = [*([*HEADS[i % 2], 100 + i] for i in range(8)), [1, 2, 3], HEADS[0][:9]]
    params = [SamplingParams(max_tokens=4 + 2 * i, temperature=0.0, ignore_eos=True) for i in range(len(prompts))]
    settings = {"num_gpu_blocks_override": pages, "block_size": 4, "max_num_seqs": 8, "async_scheduling": overlapped}
    watch = Watch()
    with LLM(str(folder), max_model_len=64, **settings) as llm:
        llm._running().executor.runner.loaded.model.register_forward_pre_hook(watch)
        outputs = llm.generate(prompts, params)
        preemptions = llm._running().scheduler.stats().preemptions
    for prompt, p, output in zip(prompts, params, outputs, strict=True):
        assert output.outputs[0].token_ids == oracle(prompt, p.max_tokens, window=window)
    assert (preemptions > 0) == (pages == 26)
    assert any(seen and seen[0] >= 3 and seen[1] == 20 for seen in watch.seen), "nobody was told to share"
    assert watch.seen[-1] is None, "sharing did not end with those who shared"


def test_a_batch_with_sharers_is_played_by_its_own_recording(tmp_path, monkeypatch):
    shared_early(monkeypatch)
    resolved(monkeypatch, graph_rows=[2, 3, 4, 6, 8, 9])
    played = []
    with LLM(str(make_toy(tmp_path)), num_gpu_blocks_override=100, block_size=4) as llm:
        graphs = llm._running().executor.runner.allocated.steps.graphs
        forward = graphs.forward
        graphs.forward = lambda order, sharing: (played.append(sharing), forward(order, sharing))[1]
        assert graphs._sharing.sizes == [4, 8, 9]
        params = SamplingParams(max_tokens=5, temperature=0.0, ignore_eos=True)
        llm.generate([[1, 2, 3, 4, 5], [7, 8, 9, 10, 11]], params)
        assert played and not any(played)
        played.clear()
        llm.generate([[*HEADS[0], i] for i in range(5)], params)
        assert any(played)
