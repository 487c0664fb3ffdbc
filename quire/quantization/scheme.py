"""What a file of `formats/` gives: for each matrix the tensors that hold it, and how they become rows in a form.

A format sees the checkpoint through a `Source` and believes the tensors that it finds there; metadata only decides what
tensors do not tell. `Scheme.read` is called by the loader, in any order and from several threads.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from quire.base.errors import CheckpointError
from quire.checkpoint.headers import TensorEntry
from quire.quantization.blocks import BlockForm
from quire.quantization.elements import packed_bytes
from quire.quantization.scaled import Block, Form

Range = tuple[int, int]
"""First index and the one behind the last."""
HEADS = ("lm_head", "embed_out")
"""What modules that make logits are called: most tools leave them alone without saying so."""
TABLES = ("embed_tokens", "embed_in", "embeddings", "word_embeddings", "wte")
"""What modules are called whose rows are looked up: whatever metadata says, only tensors make them quantized."""


class Source(Protocol):
    """The tensors of a checkpoint."""

    @property
    def entries(self) -> Mapping[str, TensorEntry]:
        """All tensors, by name."""
        ...

    def read(self, name: str, rows: Range | None = None, columns: Range | None = None) -> Tensor:
        """A tensor, or ranges of its first two dimensions, as the file has it, on the device of the weights."""
        ...

    def read_bytes(self, name: str, rows: Range) -> Tensor:
        """Rows of a tensor of any type, (rows, bytes) uint8."""
        ...

    def close(self) -> None:
        """Close the files; reading opens them again."""
        ...


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix as the model asks for it: `module` is the name of its tensors up to the last dot."""

    module: str
    outputs: int
    inputs: int


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a checkpoint holds one matrix.

    Attributes:
        form: what it becomes.
        names: tensors that are read.
        read: rows and columns (both ranges of the whole matrix) as a block of `form`. Ranges begin and end with whole
            bytes of codes; groups that a range of columns only touches are given whole.
        unused: tensors that belong to it and are not needed: scales of activations, shapes.
        whole: rows come as dear as the matrix, since the file has them as columns: they are read once.
        online: the tensors are of full precision; `names` is the one that is quantized while it is read.
        groups: of a whole row, where the form is ordered.
        unit: rows that must be read together.
    """

    form: Form | BlockForm
    names: tuple[str, ...]
    read: Callable[[Source, Range, Range], Block]
    unused: tuple[str, ...] = ()
    whole: bool = False
    online: bool = False
    groups: int = 0
    unit: int = 1


class Format(Protocol):
    """A quantization format, made from its part of config.json."""

    def scheme(self, matrix: Matrix, source: Source) -> Scheme | None:
        """How `matrix` is held; None if its tensors are of full precision. Raises CheckpointError naming a tensor."""
        ...

    def announced(self, matrix: Matrix) -> Form | None:
        """What the metadata says that a matrix of full precision should have been; None where it leaves it alone."""
        ...


Maker = Callable[[dict[str, Any]], Format]


def shape_of(source: Source, name: str) -> tuple[int, ...]:
    """The shape of a tensor that must be there."""
    entry = source.entries.get(name)
    if entry is None:
        raise CheckpointError(f"tensor {name} is missing beside the others of its module")
    return entry.shape


def expect(source: Source, name: str, *shapes: tuple[int, ...]) -> None:
    """Raise CheckpointError unless tensor `name` has one of `shapes`."""
    found = shape_of(source, name)
    if found not in shapes:
        raise CheckpointError(
            f"{source.entries[name].file}: tensor {name} has shape {found}, its matrix asks for "
            f"{' or '.join(map(str, shapes))}"
        )


def present(source: Source, matrix: Matrix, *endings: str) -> tuple[str, ...]:
    """The tensors of the module with these endings that are there."""
    names = (f"{matrix.module}.{ending}" for ending in endings)
    return tuple(name for name in names if name in source.entries)


def group_range(columns: Range, group: int) -> Range:
    """The groups that a range of columns touches."""
    return columns[0] // group, -(-columns[1] // group)


def byte_range(columns: Range, bits: int) -> Range:
    """The bytes of packed codes that a range of columns is. Raises CheckpointError where it is not whole bytes."""
    if columns[0] * bits % 8:
        raise CheckpointError(
            f"a rank would begin in the middle of a byte, at column {columns[0]} of {bits} bits; use fewer ranks"
        )
    return columns[0] * bits // 8, packed_bytes(columns[1], bits)


def group_of(inputs: int, groups: int, name: str) -> int:
    """Inputs of a group, told from how many groups there are."""
    if groups < 1 or inputs % groups:
        raise CheckpointError(f"tensor {name} has {groups} groups, which do not divide {inputs} inputs")
    return inputs // groups
