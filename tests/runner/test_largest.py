"""The largest step, which runs before an engine is ready."""

import pytest

from quire import LLM
from quire.runner.warm import largest_step
from tests.engine.toy import make_toy

pytestmark = pytest.mark.torch


def test_the_largest_step_keeps_hidden_states_and_describes_no_prompt(tmp_path):
    with LLM(str(make_toy(tmp_path)), num_gpu_blocks_override=100, block_size=4, max_num_seqs=3) as llm:
        own = llm._running().executor.runner
        plan = largest_step(own.spec, own.layout)
        assert [new.params.prompt_logprobs for new in plan.new] == [None, None, 0]
        assert [grant.tokens for grant in plan.grants[1:]] == [1, 1]
        assert own.launch(plan).result().prompt_logprobs == {}
