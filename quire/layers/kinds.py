"""Which layers of a model are alike: a pass through a few of them then takes every kernel that a pass through all does.

Called by `Decoder`, for steps that are run for their kernels and not for what they compute.
"""

from collections.abc import Sequence
from itertools import chain, pairwise

from torch import nn

from quire.ops.registry import Choice

Kind = tuple[object, ...]


def kind_of(layer: nn.Module, choices: Sequence[Choice]) -> Kind:
    """What decides on the kernels of `layer`: its modules, its weights but for their values, and its ops.

    Args:
        choices: made while it was built.
    """
    weights = chain(layer.named_parameters(), layer.named_buffers())
    return (
        [(name, type(module)) for name, module in layer.named_modules()],
        [(name, weight.shape, weight.stride(), weight.dtype) for name, weight in weights],
        [(choice.op, choice.provider, choice.spec) for choice in choices],
    )


def fewest(kinds: Sequence[Kind]) -> list[int]:
    """Indices, ascending, of some layers of these kinds: what follows each other anywhere does so among them.

    The first and the last are among them, since neither has neighbours on both sides.
    """
    numbers = [kinds.index(kind) for kind in kinds]
    # Of each pair the first, with the layer's place.
    places = {pair: place for place, pair in reversed(list(enumerate(pairwise(numbers))))}
    return sorted({0, len(kinds) - 1} | {place + more for place in places.values() for more in (0, 1)})
