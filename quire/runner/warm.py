"""What runs before an engine is ready: the largest step, to measure its memory, and what compiles all kernels."""

from collections.abc import Sequence

import msgspec

from quire.config.spec import RunSpec
from quire.messages.params import SamplingParams
from quire.messages.plan import Grant, NewRow, StepPlan
from quire.messages.state import Layout

DRAWS = (
    SamplingParams(temperature=0.0),
    # The most probable of edited logits, which are float32 whatever the model's are.
    SamplingParams(temperature=0.0, repetition_penalty=1.1),
    SamplingParams(temperature=0.9, top_p=0.9, top_k=50, min_p=0.01),
    SamplingParams(
        temperature=0.7,
        top_k=5,
        top_p=0.9,
        repetition_penalty=1.1,
        logit_bias={0: 0.0},
        min_tokens=1,
        stop_token_ids=[0],
        logprobs=1,
    ),
)
"""Ways to draw a token that together take every kernel of the sampler."""

LOGIT_ROWS = (1, 2, 5, 17, 33, 65, 129)
"""Numbers of rows of which logits may be wanted outside of recordings, one for each way to compute them."""


def step_of(counts: Sequence[int], params: SamplingParams, page_sizes: Sequence[int]) -> StepPlan:
    """New sequences of so many tokens each, which all draw a token. Every page of theirs is page 1."""
    new, grants = [], []
    for row, tokens in enumerate(counts):
        pages = [[1] * -(-tokens // size) for size in page_sizes]
        new.append(NewRow(row, [0] * tokens, tokens, 0, pages, params, row, [], [], tokens + 1))
        grants.append(Grant(row, tokens, True, [[] for _ in page_sizes]))
    return StepPlan(0, [], new, grants)


def no_room(spec: RunSpec) -> str:
    """The sentence for the user when pages leave too little memory for the largest step."""
    if spec.num_pages is not None:
        pages = f"num_gpu_blocks_override={spec.num_pages}"
    elif spec.kv_cache_memory_bytes is not None:
        pages = f"kv_cache_memory_bytes={spec.kv_cache_memory_bytes}"
    else:
        pages = f"gpu_memory_utilization={spec.memory_fraction:g}"
    most = f"max_num_batched_tokens={spec.max_num_batched_tokens}"
    return f"{pages} leaves too little memory for steps of {most} tokens; lower one of the two"


def largest_step(spec: RunSpec, layout: Layout) -> StepPlan:
    """A step that takes the whole token budget and all rows, drawing in the way that needs most memory."""
    rows = min(spec.max_num_seqs, spec.max_num_batched_tokens)
    chunk = min(spec.max_num_batched_tokens - rows + 1, layout.max_model_len)
    # With tables of all kinds: a row may come to own one of the vocabulary's width for its bias, too.
    params = SamplingParams(
        temperature=1.0, top_p=0.9, repetition_penalty=1.1, logit_bias={0: 0.0}, logprobs=spec.max_logprobs
    )
    plan = step_of([chunk] + [1] * (rows - 1), params, [group.page_size for group in layout.groups])
    if rows > 1:
        # Keeps hidden states of all tokens. By a row of one token, for which nothing follows from it: to describe a
        # long prompt takes seconds on CPUs.
        plan.new[-1].params = msgspec.structs.replace(params, prompt_logprobs=0)
    return plan
