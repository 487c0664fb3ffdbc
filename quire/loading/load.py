"""The one loader: fills every parameter of a model from its recipe, for any rank.

Names and shapes are settled for the whole model before the first byte of a tensor is read. It knows no model; it
draws no progress bar, it only reports bytes. The runner calls it.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace

import msgspec
import torch
from torch import Tensor

from quire.base.errors import CheckpointError
from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.headers import TensorEntry
from quire.loading.checkpoint import Checkpoint
from quire.loading.names import fitted
from quire.loading.quantized import Job, jobs
from quire.loading.reader import Files, Slice, slices
from quire.loading.recipe import Parametrised, Part, Span, Weight, weights_of
from quire.loading.staging import stage_for
from quire.parallel.mesh import Mesh
from quire.quantization.checkpoint import Quantized
from quire.quantization.scheme import Range
from quire.quantization.shares import needs_rows, put_share
from quire.quantization.storage import Storage

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""

# Tables that old checkpoints carry along and that are computed here.
IGNORED_ENDINGS = (
    "rotary_emb.inv_freq",
    "rotary_emb.cos_cached",
    "rotary_emb.sin_cached",
    "attn.bias",
    "attention.bias",
    "masked_bias",
)
# Scales of 8-bit pages: `layers/cache_scales.py` reads those that are needed.
CACHE_ENDINGS = (
    *(".k_scale", ".v_scale", ".kv_scale", ".k_cache.scale", ".v_cache.scale"),
    *(".q_scale", ".prob_scale", ".k_zero_point", ".v_zero_point", "_proj.output_scale"),
)
OTHER_HEADS = ("mtp.",)
"""Beginnings of what guesses tokens further ahead, beside the model: nobody asks for it."""
SHOWN = 6
MAX_READERS = 8
"""Threads that read: as many as it takes to copy from the page cache as fast as a GPU takes it in."""


def load(model: Parametrised, checkpoint: Checkpoint, mesh: Mesh, progress: Progress | None = None) -> None:
    """Fill every parameter of `model` from the files of `checkpoint`.

    Args:
        model: its parameters are `Weight`s, on any device and of any float dtype; values are converted.
        checkpoint: the one whose quantized matrices the model was built by.
        mesh: only rank and size count.
        progress: called as bytes arrive, at least once at the end.

    Raises CheckpointError naming missing and left-over tensors, wrong shapes and damaged files.
    """
    weights = weights_of(model)
    entries = check(weights, checkpoint)
    pieces = [piece for weight in weights for piece in _pieces(weight, entries, mesh)]
    device = weights[0].device if weights else torch.device("cpu")
    work = [] if checkpoint.quantized is None else _jobs(weights, checkpoint.quantized, mesh)
    try:
        _read(pieces, work, device, progress or (lambda done, total: None))
    finally:
        if checkpoint.quantized is not None:
            checkpoint.quantized.source.close()


def check(weights: list[Weight], checkpoint: Checkpoint) -> dict[str, TensorEntry]:
    """The tensors of the checkpoint by name, if they are those that `weights` are filled from: names and shapes.

    Nothing is read; weights may be on the device `meta`. Their recipes become those that fit. Raises CheckpointError
    as `load` does.
    """
    facts, entries = checkpoint.facts, dict(checkpoint.entries)
    if checkpoint.quantized is None:
        parts = (part for weight in weights for part in (*weight.recipe.parts, *weight.recipe.fused))
        entries = fitted(entries, (part.name for part in parts))
    _settle(weights, entries)
    _drop_further_layers(entries, facts)
    _check_names(weights, entries, facts.path)
    _check_shapes([part for weight in weights for part in _plain_parts(weight)], entries)
    return entries


def _plain_parts(weight: Weight) -> list[Part]:
    """The parts whose tensors are of full precision."""
    if not weight.held:
        return list(weight.recipe.parts)
    return [part for part, held in zip(weight.recipe.parts, weight.held, strict=True) if not held.reads]


def _pieces(weight: Weight, entries: dict[str, TensorEntry], mesh: Mesh) -> list[Slice]:
    """What must be read to fill `weight`."""
    pieces: list[Slice] = []
    storage, data, row = weight.stored, weight.data, 0
    if storage is not None:
        shape, dtype = (storage.outputs, storage.inputs), getattr(torch, storage.dtype)
        data = torch.empty(shape, dtype=dtype, device="meta")
    for i, part in enumerate(weight.recipe.parts):
        spans = part.spans(mesh.rank, mesh.size)
        rows = spans[0].length + spans[0].zeros
        held = weight.held[i] if weight.held else None
        if held is not None and held.reads:
            row += rows
            continue
        target, entry = data[row : row + rows], entries[part.name]
        to = None
        if storage is not None:
            to = _Target(storage, weight.data, row - spans[0].start)
            if held is not None:
                to = _Target(held.storage, weight.data[held.start :], held.first - spans[0].start)
            to, spans = to.reading(part, spans)
            target = torch.empty(rows, spans[1].length + spans[1].zeros, dtype=target.dtype, device="meta")
        if part.transposed:
            # Stored weights are put row by row, which is column by column of the file: all of it at once.
            unit = 1 if storage is None else max(1, spans[1].length)
            found = slices(target.T, entry, spans[::-1], unit)
        else:
            found = slices(target, entry, spans, part.unit)
        if part.is_changed:
            found = [replace(piece, change=_turned(part) if part.transposed else part.changed) for piece in found]
        if to is not None:
            found = [replace(piece, keep=to.keeper(part, piece)) for piece in found]
        pieces += found
        row += rows
    return pieces


def _turned(part: Part) -> Callable[[Tensor], Tensor]:
    """`part.changed` for columns of the parameter."""
    return lambda values: part.changed(values.T).T


@dataclass(frozen=True, slots=True)
class _Target:
    """Rows of `data` in `storage`, which are `shift` from those of the checkpoint tensor.

    `columns` of rows that are read whole are kept; None keeps all that are read.
    """

    storage: Storage
    data: Tensor
    shift: int
    columns: Range | None = None

    def reading(self, part: Part, spans: list[Span]) -> tuple["_Target", list[Span]]:
        """What must be read for `spans` of the part: whole rows where these have scales in common; and its target."""
        first, many = part.columns or (0, part.shape[1])
        start = spans[1].start - first
        if spans[1].length + spans[1].zeros == many or not needs_rows(self.storage, start):
            return self, spans
        return replace(self, columns=(start, start + spans[1].length)), [spans[0], Span(first, many)]

    def keeper(self, part: Part, piece: Slice) -> Callable[[Tensor], None]:
        """Stores the values of `piece`."""
        first = self.shift + (piece.start if part.transposed else piece.first)
        return lambda values: self._put(first, values.T.contiguous() if part.transposed else values)

    def _put(self, first: int, values: Tensor) -> None:
        if self.columns is None:
            self.storage.put(self.data, first, values)
        else:
            put_share(self.storage, self.data, first, values, self.columns)


def _jobs(weights: list[Weight], quantized: Quantized, mesh: Mesh) -> list[Job]:
    """What must be done to fill the quantized parts of `weights`."""
    return [
        job
        for weight in weights
        for part, held in zip(weight.recipe.parts, weight.held, strict=bool(weight.held))
        if held.reads
        for job in jobs(part, held, weight.data, quantized, part.spans(mesh.rank, mesh.size))
    ]


def _read(pieces: list[Slice], quantized: list[Job], device: torch.device, progress: Progress) -> None:
    """Read `pieces` and do the jobs, in the order of the files, several at a time."""
    readers = min(MAX_READERS, os.cpu_count() or 1)
    work: list[tuple[str, int, int, Slice | Job]] = [
        *((piece.entry.file, piece.offset, piece.target.nbytes, piece) for piece in pieces),
        *((job.file, job.offset, job.nbytes, job) for job in quantized),
    ]
    work.sort(key=lambda entry: entry[:2])
    done, total = 0, sum(entry[2] for entry in work)
    with Files() as files, ThreadPoolExecutor(readers, "load") as pool:
        stage = stage_for(device, readers)
        waiting = {
            pool.submit(each.run) if isinstance(each, Job) else pool.submit(stage.take, each, files): nbytes
            for _, _, nbytes, each in work
        }
        try:
            for future in as_completed(waiting):
                future.result()
                done += waiting[future]
                progress(done, total)
        finally:
            pool.shutdown(cancel_futures=True)
        stage.finish()
    if not work:
        progress(total, total)


def _settle(weights: list[Weight], entries: dict[str, TensorEntry]) -> None:
    """Choose the recipes that fit the checkpoint's names; see stacks of matrices as one matrix, numbers as vectors."""
    for name in [name for name, entry in entries.items() if not entry.shape]:
        entries[name] = msgspec.structs.replace(entries[name], shape=(1,))
    for weight in weights:
        weight.recipe = weight.recipe.fitting(entries)
        stacks = {part.name: len(part.shape) for part in weight.recipe.parts if part.stacked}
        for name in stacks.keys() & entries.keys():
            shape = entries[name].shape
            if len(shape) == stacks[name] + 1:
                entries[name] = msgspec.structs.replace(entries[name], shape=(shape[0] * shape[1], *shape[2:]))


def _check_names(weights: list[Weight], entries: dict[str, TensorEntry], path: str) -> None:
    schemes = [held.reads for weight in weights for held in weight.held if held.reads]
    wanted = {part.name for weight in weights for part in _plain_parts(weight)}
    wanted |= {name for scheme in schemes for name in scheme.names}
    again = {name for weight in weights for name in weight.recipe.again}
    again |= {name for scheme in schemes for name in scheme.unused}
    missing = sorted(wanted - entries.keys())
    left = sorted(
        name
        for name in entries.keys() - wanted - again
        if not name.endswith(IGNORED_ENDINGS + CACHE_ENDINGS) and not name.startswith(OTHER_HEADS)
    )
    problems = [
        f"{len(names)} {kind}: {_some(names)}" for kind, names in (("missing", missing), ("left over", left)) if names
    ]
    if problems:
        raise CheckpointError(
            f"the tensors of {path} do not fit the model; {'; '.join(problems)}. "
            "Check that config.json belongs to these weights"
        )


def _drop_further_layers(entries: dict[str, TensorEntry], facts: ModelFacts) -> None:
    """Forget the layers that some checkpoints have behind the last, to predict several tokens at once."""
    last, further = (facts.config.get(field) for field in ("num_hidden_layers", "num_nextn_predict_layers"))
    if isinstance(last, int) and isinstance(further, int):
        found = tuple(f".layers.{last + i}." for i in range(further))
        for name in [name for name in entries if any(layer in name for layer in found)]:
            del entries[name]


def _check_shapes(parts: Iterable[Part], entries: dict[str, TensorEntry]) -> None:
    for part in parts:
        entry = entries[part.name]
        wanted = part.shape[::-1] if part.transposed else part.shape
        if entry.shape != wanted:
            raise CheckpointError(
                f"{entry.file}: tensor {part.name} has shape {entry.shape}, config.json asks for {wanted}"
            )


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
