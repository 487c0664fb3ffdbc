"""The largest step, which runs before an engine is ready."""

import psutil
import pytest
import torch

from quire import LLM
from quire.base.errors import ConfigError
from quire.runner import loaded, memory, warm
from quire.runner.warm import largest_step
from quire.sampling.kernels import Kernels
from quire.sampling.sampler import Sampler
from tests.engine.settings import resolved
from tests.engine.toy import make_toy

pytestmark = pytest.mark.torch


def test_the_largest_step_keeps_hidden_states_and_describes_no_prompt(tmp_path):
    with LLM(str(make_toy(tmp_path)), num_gpu_blocks_override=100, block_size=4, max_num_seqs=3) as llm:
        own = llm._running().executor.runner
        plan = largest_step(own.spec, own.allocated.layout)
        assert [new.params.prompt_logprobs for new in plan.new] == [None, None, 0]
        assert [grant.tokens for grant in plan.grants[1:]] == [1, 1]
        assert own.launch(plan).result().prompt_logprobs == {}


def test_memory_beyond_the_process_s_group_is_not_free(monkeypatch):
    taken = psutil.Process().memory_info().rss
    monkeypatch.setattr(memory, "group_limit_bytes", lambda: taken + (8 << 20))
    assert memory.HostMemory().free_bytes() < 16 << 20


@pytest.mark.parametrize("what", [(warm, "largest_step"), (Sampler, "stay")], ids=["step", "tables"])
@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"num_gpu_blocks_override": 100}, "num_gpu_blocks_override=100"),
        ({"kv_cache_memory_bytes": 1 << 20}, f"kv_cache_memory_bytes={1 << 20}"),
    ],
)
def test_pages_that_leave_no_memory_are_named(tmp_path, monkeypatch, settings, named, what):
    """For the largest step, and for the tables of recordings."""
    resolved(monkeypatch, **({"warm_tokens": [3]} if what[0] is warm else {"graph_rows": [1]}))

    def take(*given):
        raise torch.OutOfMemoryError("no memory is left")

    monkeypatch.setattr(*what, take)
    monkeypatch.setattr(loaded, "choose_kernels", lambda *given: Kernels(recordable=True))
    with pytest.raises(ConfigError, match=f"{named} leaves too little memory"):
        LLM(str(make_toy(tmp_path)), block_size=4, **settings)
