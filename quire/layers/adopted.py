"""Parameters of modules that were not written for this engine: their memory, filled by recipes of ours.

Knows no library of models: `models/transformers.py` does.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from quire.base.errors import CheckpointError
from quire.loading.recipe import Part, Recipe, Weight


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the values of a parameter lie in the checkpoint.

    Attributes:
        names: of the tensors, stacked along the first dimension; neighbouring entries of one parameter that has a
            dimension for experts follow each other.
        rows: of each; empty where all have as many.
        transposed: whether the checkpoint holds the matrix the other way round.
    """

    names: tuple[str, ...]
    rows: tuple[int, ...] = ()
    transposed: bool = False


def adopt(module: nn.Module, origins: Mapping[str, Origin], unused: Iterable[str]) -> list[Weight]:
    """A `Weight` in the memory of each parameter and lasting buffer of `module`, which the loader fills.

    Args:
        origins: by the name of the parameter; without one it has the same name in the checkpoint.
        unused: tensors of the checkpoint that nobody needs.

    Raises CheckpointError for a parameter whose shape the loader cannot fill.
    """
    names: dict[int, list[str]] = {}
    tensors: dict[int, Tensor] = {}
    for name, tensor in _lasting(module):
        names.setdefault(id(tensor), []).append(name)
        tensors[id(tensor)] = tensor
    spare = tuple(unused)
    found: list[Weight] = []
    for key, tensor in tensors.items():
        chosen = next((name for name in names[key] if name in origins), names[key][0])
        origin = origins.get(chosen, Origin((chosen,)))
        again = tuple(name for name in names[key] if name not in origin.names)
        parts = _parts(origin, tensor, chosen)
        center = 1.0 if tensor.dim() == 1 and "norm" in chosen.lower() and chosen.endswith("weight") else 0.0
        data = tensor.data.view(1) if tensor.dim() == 0 else tensor.data
        if tensor.dim() == 3:
            data = data.flatten(0, 1)
        found.append(Weight(data, Recipe(parts, center, again + (() if found else spare))))
    return found


def _lasting(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers that checkpoints hold, each under all its names."""
    held = module.state_dict(keep_vars=True)
    return [(name, tensor) for name, tensor in held.items() if tensor.is_floating_point()]


def _parts(origin: Origin, tensor: Tensor, name: str) -> tuple[Part, ...]:
    shape = tuple(tensor.shape) or (1,)
    if len(shape) == 3:
        shape = (shape[0] * shape[1], shape[2])
    rows = origin.rows or (shape[0] // len(origin.names),) * len(origin.names)
    if len(shape) not in (1, 2) or not tensor.is_contiguous() or sum(rows) != shape[0]:
        raise CheckpointError(f"{name} has the shape {tuple(tensor.shape)}, which cannot be filled from {origin.names}")
    stacked = tensor.dim() == 3 and len(origin.names) == 1
    return tuple(
        Part(part, (count, *shape[1:]), stacked=stacked, transposed=origin.transposed)
        for part, count in zip(origin.names, rows, strict=True)
    )
