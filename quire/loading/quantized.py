"""Where the parts of a quantized matrix go: one storage if they are alike, else one for each; and how they get there.

`place` is asked while a layer is built, since tensors of the checkpoint decide how a weight is stored; `jobs` is asked
by the loader for what must be read. Knows ranks and storages, and no format.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor

from quire.base.errors import CheckpointError
from quire.loading.part_storage import PartStorage
from quire.loading.recipe import Part, Span
from quire.ops.stored import WeightSpec, arranged, offered, unfolded
from quire.quantization.blocks import FLOATS, BlockForm, Blocks, scaled
from quire.quantization.checkpoint import Quantized
from quire.quantization.scaled import Block, Form, Scaled, TakesBlocks, with_factors
from quire.quantization.scheme import Matrix, Range, Scheme, Source, byte_range, group_range
from quire.quantization.shares import Integers
from quire.quantization.stacked import Plain, Stacked
from quire.quantization.storage import Sized, Storage

BLOCK_BYTES = 16 << 20
"""Bytes of codes that are read at once, unless the file has rows as columns."""
EIGHT_BITS = {"int8": 0, "uint8b128": 128}
"""Types that kernels' own packings take with a scale a row, and what their codes differ from theirs by."""


@dataclass(frozen=True, slots=True)
class Place:
    """What weights are made for: `rank` of `size`, values of `dtype` on `device`, kernels of `providers`.

    `matrices` of equal size, one after another, are each read by itself.
    """

    rank: int
    size: int
    dtype: str
    device: str
    providers: Sequence[str]
    matrices: int = 1


@dataclass(frozen=True, slots=True)
class Job:
    """Rows of a quantized matrix on their way.

    Attributes:
        file, offset: where the first byte lies, to read files in order.
        nbytes: about how many are read.
        run: reads and stores.
    """

    file: str
    offset: int
    nbytes: int
    run: Callable[[], None]


def place(parts: Sequence[Part], quantized: Quantized, where: Place) -> tuple[Storage, tuple[PartStorage, ...]] | None:
    """The storage of the stacked `parts`, and how each gets into it; None where all are of full precision.

    Raises CheckpointError.
    """
    found = [_scheme(part, quantized) for part in parts]
    if not any(found):
        return None
    cuts = [part.spans(where.rank, where.size) for part in parts]
    schemes = [
        None if one is None else _aligned(one, part, cut) for one, part, cut in zip(found, parts, cuts, strict=True)
    ]
    members: list[Sized] = []
    places: list[tuple[int, int]] = []
    for scheme, cut in zip(schemes, cuts, strict=True):
        member = _member(scheme, cut, where)
        if members and (joint := _joint(members[-1], member)) is not None:
            places.append((len(members) - 1, members[-1].outputs))
            members[-1] = joint
        else:
            places.append((len(members), 0))
            members.append(member)
    online = any(scheme is None or scheme.online for scheme in schemes)
    if len(members) == 1 and (storage := _single(members[0], where, online)) is not None:
        return storage, tuple(
            PartStorage(storage, 0, row, scheme) for scheme, (_, row) in zip(schemes, places, strict=True)
        )
    stack = Stacked(tuple(_read_by(member, where) for member in members))
    starts = stack.starts()
    return stack, tuple(
        PartStorage(cast(Storage, stack.members[number]), starts[number], row, scheme)
        for scheme, (number, row) in zip(schemes, places, strict=True)
    )


def _scheme(part: Part, quantized: Quantized) -> Scheme | None:
    matrix = Matrix(part.name.removesuffix(".weight"), part.shape[0], part.shape[1])
    scheme = quantized.scheme(matrix)
    if scheme is not None:
        # Formats hold (outputs, inputs) also where a family's own matrices are the other way round; stacks they do not.
        if (part.transposed and part.stacked) or part.plus:
            raise CheckpointError(f"tensor {part.name} is quantized, which this model's layout does not allow")
        return scheme
    form = quantized.online(matrix)
    return None if form is None else Scheme(form, (part.name,), _never, online=True)


def _never(*_: object) -> Block:
    raise AssertionError("values of full precision are read as such")


def _aligned(scheme: Scheme, part: Part, cut: list[Span]) -> Scheme:
    """The scheme for these rows: with scales of its own for every row where blocks of rows would be cut."""
    if isinstance(scheme.form, BlockForm):
        return scheme
    block, inner = scheme.form.row_block, scheme.read
    if block > 1 and (part.halves is not None or any(n % block for n in (cut[0].start, cut[0].length))):
        last_of_tensor = cut[0].start % block == 0 and cut[0].start + cut[0].length == part.shape[0]
        if part.halves is not None or part.rows is not None or not last_of_tensor:

            def read(source: Source, rows: Range, columns: Range) -> Block:
                found = inner(source, rows, columns)
                ids = (torch.arange(*rows, device=found.codes.device)) // block - rows[0] // block
                raw = found.scales.view(torch.uint8) if found.scales.element_size() == 1 else found.scales
                return replace(found, scales=raw[ids].view(found.scales.dtype))

            scheme = replace(scheme, form=replace(scheme.form, row_block=1), read=read)
    return scheme


def _member(scheme: Scheme | None, cut: list[Span], where: Place) -> Sized:
    rows, columns = (span.length + span.zeros for span in cut)
    if scheme is None:
        return Plain(rows, columns, where.dtype, where.device)
    form = scheme.form
    if isinstance(form, BlockForm):
        if form.kind in FLOATS:
            return Plain(rows, columns, where.dtype, where.device)
        return _in_blocks(Blocks(rows, columns, form, where.dtype, where.device, cut[1].start % form.per), where)
    if form.group is None or scheme.online:
        return Scaled.of(rows, columns, form, where.dtype, where.device)
    first, last = group_range((cut[1].start, cut[1].start + columns), form.group)
    offset = cut[1].start - first * form.group
    if form.ordered:
        # Columns of any group may be anywhere.
        first, last, offset = 0, scheme.groups, 0
    return Scaled(rows, columns, form, last - first, offset, where.dtype, where.device)


def _in_blocks(blocks: Blocks, where: Place) -> Sized:
    """Blocks as they are, or the like with scales where a provider reads that."""
    form = blocks.form.scaled
    if unfolded(blocks, where.providers) is not None:
        return blocks
    # GPUs' kernels for experts read no shifts.
    if form is None or blocks.offset or (form.shifted and where.matrices > 1):
        return blocks
    made = Scaled.of(blocks.outputs, blocks.inputs, form, where.dtype, where.device)
    return blocks if arranged(made, where.providers) is None else made


def _joint(last: Sized, other: Sized) -> Sized | None:
    """One storage for the rows of both, if those of `other` can follow those of `last` in it."""
    if not isinstance(last, Plain | Scaled | Blocks) or replace(last, outputs=other.outputs) != other:
        return None
    if isinstance(last, Scaled):
        form = last.form
        if form.ordered or form.columns or last.outputs % form.row_block or other.outputs % form.row_block:
            return None
    return replace(last, outputs=last.outputs + other.outputs)


def _single(whole: Sized, where: Place, online: bool) -> Storage | None:
    """The storage of a matrix whose parts are alike; None where it is kept as a stack of one."""
    return _own(whole, where, online) or (whole if isinstance(whole, Scaled) else None)


def _read_by(member: Sized, where: Place) -> Sized:
    """A member as the first of the providers that reads it stores it, or itself."""
    plain = isinstance(member, Plain)
    own = offered(_wanted(member, where, None), where.providers) if plain else _own(member, where)
    return own if isinstance(own, Sized) else member


def _own(member: Sized, where: Place, online: bool = False) -> Storage | None:
    """How the first of the providers that reads a quantized matrix stores it."""
    if isinstance(member, Blocks):
        return unfolded(member, where.providers)
    if isinstance(member, Scaled):
        return arranged(member, where.providers) or (None if online else _in_integers(member, where))
    return None


def _in_integers(whole: Scaled, where: Place) -> Storage | None:
    """A kernel's own packing of 8-bit integers with a scale a row, if it holds the same values exactly."""
    form = whole.form
    special = form.zeros or form.shifted or form.ordered or form.columns or form.group is not None
    if special or form.row_block > 1 or form.element not in EIGHT_BITS:
        return None
    return offered(_wanted(whole, where, 8), where.providers)


def _wanted(whole: Sized, where: Place, bits: Literal[8] | None) -> WeightSpec:
    return WeightSpec(whole.outputs, whole.inputs, bits, 128, where.dtype, where.device, where.matrices)


def jobs(part: Part, held: PartStorage, data: Tensor, quantized: Quantized, cut: list[Span]) -> list[Job]:
    """What must be done to fill `data`, the weight's bytes, with one part."""
    scheme = held.scheme
    assert scheme is not None and not scheme.online
    _note(quantized, held, scheme.form, cut)
    columns = cut[1].start, cut[1].start + cut[1].length
    begin, end = byte_range(columns, scheme.form.bits)
    unit = max(part.unit, scheme.form.row_block, scheme.unit)
    step = cut[0].length if scheme.whole else max(1, BLOCK_BYTES // max(1, (end - begin) * unit)) * unit
    first, found = cut[0].start, []
    entry = quantized.source.entries[scheme.names[0]]
    for row in range(first, first + cut[0].length, max(1, step)):
        rows = row, min(row + step, first + cut[0].length)
        share = entry.nbytes * (rows[1] - rows[0]) // max(1, part.shape[0])
        run = _runner(part, held, data, quantized, (rows, columns, held.first + row - first))
        found.append(Job(entry.file, entry.offset + entry.nbytes * row // max(1, part.shape[0]), share, run))
    return found


def _note(quantized: Quantized, held: PartStorage, form: Form | BlockForm, cut: list[Span]) -> None:
    """Tell how much larger than the file's a weight is."""
    if isinstance(form, BlockForm) and form.kind not in FLOATS and not isinstance(held.storage, Blocks):
        assert isinstance(held.storage, Sized)
        read, kept = quantized.unfolded
        rows, blocks = cut[0].length, -(-cut[1].length // form.per)
        share = held.storage.nbytes * rows // held.storage.outputs
        quantized.unfolded = read + rows * blocks * form.each, kept + share


def _runner(
    part: Part, held: PartStorage, data: Tensor, quantized: Quantized, where: tuple[Range, Range, int]
) -> Callable[[], None]:
    rows, columns, first = where

    def run() -> None:
        assert held.scheme is not None
        block = held.scheme.read(quantized.source, rows, columns)
        if part.halves is not None:
            block = _permuted(block, part.changed(torch.arange(len(block.codes))).to(block.codes.device))
        _keep(held.storage, data[held.start :], first, block, held.scheme.form)

    return run


def _permuted(block: Block, order: Tensor) -> Block:
    """The block with its rows in another order."""

    def taken(values: Tensor) -> Tensor:
        return values.view(torch.uint8)[order].view(values.dtype) if values.element_size() == 1 else values[order]

    return block.by_rows(taken)


def _keep(storage: Storage, data: Tensor, first: int, block: Block, form: Form | BlockForm) -> None:
    if isinstance(form, BlockForm) and form.kind in FLOATS:
        values = FLOATS[form.kind](block.codes)
        storage.put(data, first, torch.nn.functional.pad(values, (0, storage.inputs - values.shape[1])))
        return
    if isinstance(storage, Scaled) and isinstance(form, BlockForm):
        block = scaled(form, block.codes, storage.inputs)
    if isinstance(storage, TakesBlocks):
        storage.put_block(data[: storage.nbytes], first, block)
        return
    assert isinstance(form, Form) and isinstance(storage, Integers)
    scales = block.scales.float()
    if block.factors is not None:
        scales = with_factors(scales, block.factors, form)
    codes = block.codes ^ EIGHT_BITS[form.element]
    storage.put_quantized(data, first, codes.view(torch.int8), scales.reshape(-1))
