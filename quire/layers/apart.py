"""A step in two parts: sequences that compute one token, and those that compute more."""

from collections.abc import Callable

import torch
from torch import Tensor

from quire.ops.step import StepInputs


def apart(x: Tensor, step: StepInputs, compute: Callable[[Tensor, StepInputs], Tensor]) -> Tensor:
    """`compute` of a step's tokens: where some sequences compute one and others more, of these and of those by itself.

    What decodes best is not what reads prompts best.
    """
    if not step.singles or step.singles == len(step.seq_lens):
        return compute(x, step)
    cuts = x[: step.singles], x[step.singles :]
    return torch.cat([compute(*both) for both in zip(cuts, step.parts(), strict=True)])
