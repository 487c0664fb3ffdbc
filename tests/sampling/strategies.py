"""Random sampling settings, prompts and logits, valid ones: the validator refuses the others."""

from hypothesis import strategies as st

from quire.messages.params import SamplingParams

VOCAB = 24
TOKENS = st.integers(0, VOCAB - 1)


def optional(strategy):
    return st.one_of(st.none(), strategy)


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1e-6, 1e-4, 0.3, 1.0, 2.0]),
    top_k=st.sampled_from([-1, 0, 1, 2, 5, VOCAB, VOCAB + 7]),
    top_p=st.sampled_from([1e-6, 0.3, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.2, 1.0]),
    repetition_penalty=st.sampled_from([1e-30, 0.5, 1.0, 1.3, 1e30]),
    frequency_penalty=st.sampled_from([-2.0, 0.0, 0.5]),
    presence_penalty=st.sampled_from([-2.0, 0.0, 1.5]),
    logit_bias=optional(st.dictionaries(TOKENS, st.floats(-100, 100, width=32), min_size=1, max_size=4)),
    allowed_token_ids=optional(st.lists(TOKENS, min_size=1, max_size=6)),
    min_tokens=st.sampled_from([0, 0, 1, 5]),
    stop_token_ids=optional(st.lists(TOKENS, max_size=3)),
    logprobs=optional(st.sampled_from([0, 1, 3, VOCAB])),
)

SEQUENCE = st.fixed_dictionaries(
    {
        "params": PARAMS,
        "prompt": st.lists(TOKENS, min_size=1, max_size=4).map(tuple),
        "output": st.lists(TOKENS, max_size=4).map(tuple),
        "seed": st.integers(0, 2**64 - 1),
        "eos": st.lists(TOKENS, max_size=2).map(tuple),
        "bad_words": st.lists(st.lists(TOKENS, min_size=1, max_size=3).map(tuple), max_size=3).map(tuple),
    }
)
"""Keyword arguments of `Rig.begin`."""

LOGIT = st.one_of(st.floats(-30, 30, width=32), st.sampled_from([0.0, -0.0, 1.0, 3e38, -3e38, float("-inf")]))
LOGITS = st.lists(LOGIT, min_size=VOCAB, max_size=VOCAB).filter(lambda x: max(x) > float("-inf"))
