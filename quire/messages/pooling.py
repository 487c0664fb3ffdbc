"""`PoolingParams`: what a request wants of a text instead of more text. Names are vLLM's.

`Pooling` is the same with nothing left open, as the validator makes it for the engine.
"""

from typing import Literal

import msgspec

from quire.checkpoint.pooling import Activation

PoolingTask = Literal["embed", "classify", "score", "token_embed", "token_classify"]
TOKEN_TASKS = ("token_embed", "token_classify")
GENERATE = "generate"
"""The task of engines that do not pool."""


class PoolingParams(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What to make of a text.

    Attributes:
        task: a vector, the probabilities of labels, how well two texts go together; or the first two for every token.
        dimensions: values of a vector, fewer than the model's (Matryoshka).
        normalize: whether vectors are made 1 long; None is as the checkpoint says.
        use_activation: whether scores of labels become probabilities; None is yes.
        truncate_prompt_tokens: keep only the first so many tokens; -1 means max_model_len.
    """

    task: PoolingTask | None = None
    dimensions: int | None = None
    normalize: bool | None = None
    use_activation: bool | None = None
    truncate_prompt_tokens: int | None = None


class Pooling(msgspec.Struct, array_like=True, frozen=True):
    """What ranks make of a sequence.

    Attributes:
        task: as in PoolingParams.
        dimensions: values of each vector.
        normalize: whether vectors are made 1 long.
        activation: what is done to scores of labels.
        every_token: whether the states of all tokens count, so that none may come from the prefix cache.
        second: where the second of two texts begins; the prompt's length where there is one.
        seen: the first so many tokens are seen by the others; the prompt's length where all are.
    """

    task: PoolingTask
    dimensions: int
    normalize: bool
    activation: Activation
    every_token: bool
    second: int
    seen: int
