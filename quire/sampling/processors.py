"""Callables of the user, which change logits before anything else: they see the model's and cannot undo what follows.

After them come the tables of the op `edit_logits`, the grammar (`masks.py`), and the op `draw_tokens`: temperature,
min_p, top_k, top_p. It is vLLM's order; in Hugging Face's min_p comes after top_p.
"""

from dataclasses import dataclass
from types import FunctionType

import torch
from torch import Tensor

from quire.sampling.rows import SamplingRow


@dataclass(frozen=True, slots=True)
class History:
    """What rows know: tokens (max_rows, max_len) int32 and how many of them are valid, known (max_rows,) int32."""

    tokens: Tensor
    known: Tensor


def run_callables(x: Tensor, row: int, host: SamplingRow, history: History) -> str | None:
    """Run the callables of one row, in place. Reads the row's history back from the device.

    Args:
        x: (vocab,) float32 logits of the row.

    Returns:
        None, or the sentence to tell when a callable failed; it concerns this row only.
    """
    tokens = history.tokens[row, : int(history.known[row])].tolist()
    prompt, generated = tokens[: host.prompt_len], tokens[host.prompt_len :]
    for processor in host.processors:
        call = processor.call
        name = call.__name__ if isinstance(call, FunctionType) else type(call).__name__
        arguments = (prompt, generated) if processor.wants_prompt else (generated,)
        try:
            result = call(*(list(a) for a in arguments), x.clone())
        except Exception as error:  # whatever the user's code raises belongs to the user's request
            return f"logits processor {name} raised {type(error).__name__}: {error}"
        if not isinstance(result, Tensor) or result.shape != x.shape:
            return f"logits processor {name} must return a tensor of shape {tuple(x.shape)}"
        x.copy_(result)
        if not bool((x < torch.inf).all()):
            return f"logits processor {name} returned NaN or +inf; use -inf to exclude tokens"
    return None
