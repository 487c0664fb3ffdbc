"""What tensors a checkpoint has, from the headers of its safetensors files; no tensor is read.

Every claim of a header is held against the size of its file before anyone allocates by it, so a truncated download or a
crafted file ends here with a CheckpointError. `loading/reader.py` reads bytes by these entries.
"""

import json
import math
from pathlib import Path
from typing import Any

import msgspec

from quire.base.errors import CheckpointError
from quire.checkpoint.gguf import ROPE_TENSORS, published, read_gguf
from quire.checkpoint.gguf_folder import LINK

INDEX = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100 << 20
ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
    "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip


class TensorEntry(msgspec.Struct, frozen=True):
    """One tensor of a checkpoint: `nbytes` bytes at `offset` of `file`, row-major.

    Attributes:
        name: as the checkpoint calls it.
        dtype: safetensors' name, such as "BF16".
        shape: sizes of its dimensions.
    """

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_headers(path: str | Path) -> dict[str, TensorEntry]:
    """Every tensor of the checkpoint in folder `path`, by name.

    Raises CheckpointError naming the file and tensor for a missing shard, a header that does not fit its file,
    overlapping or truncated data, an unknown dtype, or a tensor that the index promises and no shard has.
    """
    folder = Path(path)
    if (folder / LINK).exists():
        return _gguf_entries(folder / LINK)
    index = _read_index(folder)
    files = sorted(set(index.values())) if index else _single_files(folder)
    entries: dict[str, TensorEntry] = {}
    for name in files:
        for entry in read_header(folder / name):
            if entry.name in entries:
                raise CheckpointError(f"tensor {entry.name} is in both {entries[entry.name].file} and {entry.file}")
            entries[entry.name] = entry
    for tensor, file in index.items():
        if tensor not in entries or Path(entries[tensor].file).name != file:
            raise CheckpointError(f"{folder / INDEX} promises tensor {tensor} in {file}, which does not have it")
    return entries


def _gguf_entries(file: Path) -> dict[str, TensorEntry]:
    """The tensors of a GGUF file and of those that belong to it, by the names of other checkpoints.

    Types of ggml's begin with GGML_.
    """
    found, whole = {}, read_gguf(file)
    family = whole.family
    for tensor in whole.tensors:
        kind = tensor.kind if tensor.kind in ITEM_BYTES else f"GGML_{tensor.kind}"
        name = published(tensor.name, family)
        found[name] = TensorEntry(name, str(tensor.file), kind, tensor.shape, tensor.offset, tensor.nbytes)
    return {name: entry for name, entry in found.items() if name not in ROPE_TENSORS}


def read_header(file: Path) -> list[TensorEntry]:
    """The tensors of one safetensors file, in order of their data."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise CheckpointError(f"{file} is truncated or no safetensors file: {size} bytes; download it again")
            header = json.loads(stream.read(length))
    except FileNotFoundError:
        raise CheckpointError(f"shard {file} is missing; download the checkpoint again") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: its header cannot be read: {error}; download it again") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{file}: its header must be a JSON object; download it again")
    header.pop("__metadata__", None)
    start = 8 + length
    entries = [_entry(file, name, value, start) for name, value in header.items()]
    _check_extents(file, entries, start, size)
    return entries


def _entry(file: Path, name: str, value: Any, start: int) -> TensorEntry:
    try:
        dtype, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
        numbers = [*shape, begin, end]
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{file}: entry of tensor {name} lacks dtype, shape or data_offsets") from None
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise CheckpointError(f"{file}: tensor {name} has a shape or offset that is no natural number")
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise CheckpointError(f"{file}: tensor {name} has unknown dtype {dtype!r}; known: {', '.join(ITEM_BYTES)}")
    if end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
        raise CheckpointError(f"{file}: tensor {name}, {dtype} of shape {shape}, does not fill its {end - begin} bytes")
    return TensorEntry(name, str(file), dtype, shape, start + begin, end - begin)


def _check_extents(file: Path, entries: list[TensorEntry], start: int, size: int) -> None:
    """Tensors must lie one after another, without gap or overlap, up to the end of the file."""
    entries.sort(key=lambda entry: (entry.offset, entry.nbytes))
    position = start
    for entry in entries:
        if entry.offset != position:
            raise CheckpointError(f"{file}: tensor {entry.name} overlaps another or leaves a gap before it")
        position += entry.nbytes
        if position > size:
            raise CheckpointError(
                f"{file} is truncated: tensor {entry.name} ends at byte {position}, the file at {size}; "
                "download it again"
            )
    if position != size:
        raise CheckpointError(f"{file} has {size - position} bytes after its last tensor; download it again")


def _read_index(folder: Path) -> dict[str, str]:
    """Tensor name to file name, or nothing if the checkpoint has no index."""
    file = folder / INDEX
    try:
        weight_map = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
        names = msgspec.convert(weight_map, dict[str, str])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read: {error!r}; download it again") from error
    for name in names.values():
        # A shard is a plain file beside its index; anything else would read outside the folder.
        if Path(name).name != name:
            raise CheckpointError(f"{file} names shard {name!r}, which is not a file beside it")
    return names


def _single_files(folder: Path) -> list[str]:
    if (folder / "model.safetensors").is_file():
        return ["model.safetensors"]
    files = sorted(file.name for file in folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(
            f"{folder} has no .safetensors file; convert the weights to safetensors, or use --load-format dummy"
        )
    return files
