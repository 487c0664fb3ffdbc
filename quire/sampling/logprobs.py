"""Log-probabilities to report: of the model's own logits, before anything changes them.

Called by the sampler for generated tokens and by the runner for prompts, in slices of rows that bound memory.
"""

from torch import Tensor

from quire.messages.plan import TokenLogprobs
from quire.ops.logprobs import Logprobs
from quire.sampling.kernels import Kernels

__all__ = ["Logprobs", "prompt_logprobs", "to_list"]

_REFERENCE = Kernels()


def prompt_logprobs(logits: Tensor, targets: Tensor, top: int, kernels: Kernels = _REFERENCE) -> list[TokenLogprobs]:
    """What the logits of prompt tokens say of the tokens that follow them. Waits for the device.

    Args:
        logits: (n, vocab); give at most a few hundred rows at once.
        targets: (n,), the token that follows each.
        top: how many of the most probable tokens to add.
        kernels: who computes it.
    """
    found = kernels.describe(logits, targets.long(), top)
    return to_list(found.ids.tolist(), found.values.tolist(), found.ranks.tolist())


def to_list(ids: list[list[int]], values: list[list[float]], ranks: list[int]) -> list[TokenLogprobs]:
    """One message per row."""
    return list(map(TokenLogprobs, ids, values, ranks))
