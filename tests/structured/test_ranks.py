"""A grammar reaches the rank that samples, in a process of its own, on the channel beside the steps."""

import re

import pytest

from quire import LLM, SamplingParams
from quire.base.errors import RequestError
from quire.messages.structured import StructuredOutputsParams

pytestmark = pytest.mark.multi


def test_two_ranks_keep_to_a_grammar():
    params = SamplingParams(max_tokens=30, seed=1, n=4, structured_outputs=StructuredOutputsParams(regex="[a-f]{5,9}"))
    with LLM(tensor_parallel_size=2, num_gpu_blocks_override=100, async_scheduling=True) as llm:
        (output,) = llm.generate("A word:", params)
        assert all(re.fullmatch("[a-f]{5,9}", answer.text) for answer in output.outputs)
        bad = SamplingParams(structured_outputs=StructuredOutputsParams(regex="("))
        with pytest.raises(RequestError):
            llm.generate("A word:", bad)
