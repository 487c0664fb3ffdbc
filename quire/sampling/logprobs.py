"""Log-probabilities to report: of the model's own logits, before anything changes them.

Called by the sampler for generated tokens and by the runner for prompts, in slices of rows that bound memory.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quire.messages.plan import TokenLogprobs
from quire.ops.logprobs import Logprobs
from quire.sampling.kernels import Kernels

__all__ = ["Logprobs", "prompt_logprobs", "told"]

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
    bits = found.values.view(torch.int32)
    return told(found.ids.T.cpu().numpy(), bits.T.cpu().numpy(), found.ranks.cpu().numpy())


def told(ids: NDArray[np.integer], bits: NDArray[np.integer], ranks: NDArray[np.integer]) -> list[TokenLogprobs]:
    """One message per row, of n. ids, and the bits of float32 values: (1 + top, n); ranks: (n,)."""
    table = np.ascontiguousarray(np.concatenate([ids, bits]).T, dtype=np.int32)
    # Each line as one object: the messages of a step are made while the device may have nothing to do.
    lines: list[bytes] = table.view(f"V{table.shape[1] * table.itemsize}").ravel().tolist()
    return list(map(TokenLogprobs, lines, ranks.tolist()))
