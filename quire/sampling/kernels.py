"""`Kernels`: the ops that a sampler is made of, each by the provider that serves it on this device.

Chosen once, by the runner; the default is the reference of each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from quire.ops.draw import draw_tokens
from quire.ops.edit import edit_logits
from quire.ops.greedy import greedy_sample
from quire.ops.logprobs import Logprobs, token_logprobs
from quire.ops.registry import Choice, check_choices, choose


@dataclass(frozen=True, slots=True)
class Kernels:
    """Functions with the signatures of the ops.

    Attributes:
        greedy, draw, edit, describe: `greedy_sample`, `draw_tokens`, `edit_logits`, `token_logprobs`.
        recordable: whether graphs may record all of them.
        choices: how they were chosen.
    """

    greedy: Callable[..., Tensor] = greedy_sample.reference
    draw: Callable[..., Tensor] = draw_tokens.reference
    edit: Callable[..., Tensor] = edit_logits.reference
    describe: Callable[..., Logprobs] = token_logprobs.reference
    recordable: bool = False
    choices: tuple[Choice, ...] = ()


def choose_kernels(providers: Sequence[str], deterministic: bool = False) -> Kernels:
    """The best of `providers`, which are imported already, for each op; `deterministic` as of `choose`."""
    ops = (greedy_sample, draw_tokens, edit_logits, token_logprobs)
    greedy, draw, edit, describe = choices = tuple(choose(op, None, providers, None, deterministic) for op in ops)
    check_choices(choices, deterministic)
    recordable = all(choice.capturable for choice in choices)
    return Kernels(greedy.function, draw.function, edit.function, describe.function, recordable, choices)
