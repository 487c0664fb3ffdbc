"""What runs once before an engine is ready, beside steps of all sizes, so that nothing compiles afterwards."""

from quire.messages.params import SamplingParams

DRAWS = (
    SamplingParams(temperature=0.0),
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
