"""The one loader: fills every parameter of a model from its recipe, for any rank.

Names and shapes are settled for the whole model before the first byte of a tensor is read. It knows no model; it
draws no progress bar, it only reports bytes. The runner calls it.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace

import msgspec
import torch
from torch import Tensor

from quire.base.errors import CheckpointError
from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.headers import TensorEntry, read_headers
from quire.loading.reader import Files, Slice, slices
from quire.loading.recipe import Parametrised, Part, Weight, weights_of
from quire.loading.staging import stage_for
from quire.parallel.mesh import Mesh

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""

# Tables that old checkpoints carry along and that are computed here.
IGNORED_ENDINGS = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached", "attn.bias", "masked_bias")
SHOWN = 6
MAX_READERS = 8
"""Threads that read: as many as it takes to copy from the page cache as fast as a GPU takes it in."""


def load(
    model: Parametrised,
    facts: ModelFacts,
    mesh: Mesh,
    progress: Progress | None = None,
) -> None:
    """Fill every parameter of `model` from the files of `facts.path`.

    Args:
        model: its parameters are `Weight`s, on any device and of any float dtype; values are converted.
        mesh: only rank and size count.
        progress: called as bytes arrive, at least once at the end.

    Raises CheckpointError naming missing and left-over tensors, wrong shapes and damaged files.
    """
    weights = weights_of(model)
    entries = read_headers(facts.path)
    _settle(weights, entries)
    _check_names(weights, entries, facts.path)
    jobs = [(weight, part) for weight in weights for part in weight.recipe.parts]
    _check_shapes([part for _, part in jobs], entries)
    pieces = [piece for weight in weights for piece in _pieces(weight, entries, mesh)]
    device = weights[0].device if weights else torch.device("cpu")
    _read(pieces, device, progress or (lambda done, total: None))


def _pieces(weight: Weight, entries: dict[str, TensorEntry], mesh: Mesh) -> list[Slice]:
    """What must be read to fill `weight`."""
    pieces: list[Slice] = []
    storage, data, row = weight.stored, weight.data, 0
    if storage is not None:
        shape, dtype = (storage.outputs, storage.inputs), getattr(torch, storage.dtype)
        data = torch.empty(shape, dtype=dtype, device="meta")
    for part in weight.recipe.parts:
        spans = part.spans(mesh.rank, mesh.size)
        rows = spans[0].length + spans[0].zeros
        target, entry = data[row : row + rows], entries[part.name]
        if part.transposed:
            # Stored weights are put row by row, which is column by column of the file: all of it at once.
            unit = 1 if storage is None else max(1, spans[1].length)
            found = slices(target.T, entry, spans[::-1], unit)
        else:
            found = slices(target, entry, spans, part.unit)
        if part.is_changed:
            found = [replace(piece, change=part.changed) for piece in found]
        if storage is not None:
            found = [replace(piece, keep=_keeper(weight, part, row - spans[0].start, piece)) for piece in found]
        pieces += found
        row += rows
    return pieces


def _keeper(weight: Weight, part: Part, shift: int, piece: Slice) -> Callable[[Tensor], None]:
    """Stores the values of `piece` as rows of `weight`, which are `shift` from those of the checkpoint tensor."""
    storage = weight.stored
    assert storage is not None
    if part.transposed:
        return lambda values: storage.put(weight.data, shift + piece.start, values.T.contiguous())
    first = shift + piece.first
    return lambda values: storage.put(weight.data, first, values)


def _read(pieces: list[Slice], device: torch.device, progress: Progress) -> None:
    """Read `pieces` in the order of the files, several at a time."""
    pieces.sort(key=lambda piece: (piece.entry.file, piece.offset))
    done, total = 0, sum(piece.target.nbytes for piece in pieces)
    readers = min(MAX_READERS, os.cpu_count() or 1)
    with Files() as files, ThreadPoolExecutor(readers, "load") as pool:
        stage = stage_for(device, readers)
        waiting = {pool.submit(stage.take, piece, files): piece.target.nbytes for piece in pieces}
        try:
            for future in as_completed(waiting):
                future.result()
                done += waiting[future]
                progress(done, total)
        finally:
            pool.shutdown(cancel_futures=True)
        stage.finish()
    if not pieces:
        progress(total, total)


def _settle(weights: list[Weight], entries: dict[str, TensorEntry]) -> None:
    """Choose the recipes that fit the checkpoint's names, and see stacks of matrices as one matrix."""
    for weight in weights:
        weight.recipe = weight.recipe.fitting(entries)
        stacks = {part.name: len(part.shape) for part in weight.recipe.parts if part.stacked}
        for name in stacks.keys() & entries.keys():
            shape = entries[name].shape
            if len(shape) == stacks[name] + 1:
                entries[name] = msgspec.structs.replace(entries[name], shape=(shape[0] * shape[1], *shape[2:]))


def _check_names(weights: list[Weight], entries: dict[str, TensorEntry], path: str) -> None:
    wanted = {part.name for weight in weights for part in weight.recipe.parts}
    again = {name for weight in weights for name in weight.recipe.again}
    missing = sorted(wanted - entries.keys())
    left = sorted(name for name in entries.keys() - wanted - again if not name.endswith(IGNORED_ENDINGS))
    problems = [
        f"{len(names)} {kind}: {_some(names)}" for kind, names in (("missing", missing), ("left over", left)) if names
    ]
    if problems:
        raise CheckpointError(
            f"the tensors of {path} do not fit the model; {'; '.join(problems)}. "
            "Check that config.json belongs to these weights"
        )


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
