"""GGUF: a file with metadata, tokenizer, chat template and tensors, and what its tensors are called elsewhere.

Tensors may be spread over several files (NAME-00001-of-00003.gguf), of which the first has all else.

Layout: github.com/ggml-org/ggml, docs/gguf.md. Tensors keep ggml's types, which `quantization/formats/gguf.py` reads;
`gguf_folder.py` makes a folder of the rest.
"""

import re
import struct
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from quire.base.errors import CheckpointError
from quire.checkpoint.gguf_families import FAMILIES, NAMES, Family

FLOATS = {0: "F32", 1: "F16", 30: "BF16"}
BLOCKS = {
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
}  # fmt: skip
"""ggml's number of a type: its name, values and bytes of a block."""
UNREAD = {
    16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS",
    29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip
"""Types that are known by name only."""
NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
TEXT, ARRAY = 8, 9
SPANS = ("short", "long")
ROPE_TENSORS = ("rope_freqs.weight", *(f"rope_factors_{name}.weight" for name in SPANS))
"""Tensors that say how frequencies are stretched, and belong to no module."""
ROWS = ("ffn_gate_inp_shexp.weight",)
"""Vectors that other checkpoints hold as matrices of one row."""
MAX_COUNT = 1 << 24
MAX_FILES = 99999
"""Names have five digits."""
PART = re.compile(r"(.+)-\d{5}-of-\d{5}\.gguf")
"""Names of files that belong together."""


class GgufTensor(msgspec.Struct, frozen=True):
    """One tensor: `shape` as torch has it, `kind` a name of FLOATS or BLOCKS, `nbytes` at `offset` of `file`.

    Stacks of experts' matrices are one matrix of all their rows; ROWS are matrices.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    file: Path


class Gguf(msgspec.Struct, frozen=True):
    """What a file holds, or the first of several and the others."""

    file: Path
    metadata: dict[str, Any]
    tensors: list[GgufTensor]

    @property
    def architecture(self) -> str:
        """As the file calls it."""
        return str(self.metadata.get("general.architecture"))

    @property
    def family(self) -> Family:
        """What is known of the architecture. Raises CheckpointError if nothing is."""
        found = FAMILIES.get(self.architecture)
        if found is None:
            known = ", ".join(FAMILIES)
            raise CheckpointError(
                f"{self.file}: architecture {self.architecture!r} is not supported; supported: {known}"
            )
        if found.other is None:
            return found
        ending, other = found.other
        return other if any(tensor.name == f"blk.0.{ending}" for tensor in self.tensors) else found


def parts_of(file: Path, count: int) -> list[Path]:
    """The files over which the tensors of `file`, the first of `count`, are spread."""
    named = PART.fullmatch(file.name)
    stem = named[1] if named else file.stem
    return [file, *(file.with_name(f"{stem}-{number:05}-of-{count:05}.gguf") for number in range(2, count + 1))]


def read_gguf(file: Path) -> Gguf:
    """Metadata and tensors of `file` and of those that belong to it.

    Raises CheckpointError where one is missing or damaged or has types that are not known.
    """
    first = _read_file(file)
    count, number = _split(first)
    if number:
        raise CheckpointError(
            f"{file} is part {number + 1} of {count}; name the first, whose name has 00001-of-{count:05}"
        )
    tensors = list(first.tensors)
    for number, part in enumerate(parts_of(file, count)[1:], 2):
        if not part.exists():
            raise CheckpointError(f"{file} is the first of {count} files; {part} is missing; put it beside the first")
        other = _read_file(part)
        if other.metadata.get("split.no") != number - 1:
            raise CheckpointError(f"{part} is not part {number} of {count}; download it again")
        tensors += other.tensors
    promised = first.metadata.get("split.tensors.count", len(tensors))
    if len(tensors) != promised:
        raise CheckpointError(
            f"{file}: its {count} files have {len(tensors)} tensors, not {promised}; download them again"
        )
    return Gguf(file, first.metadata, tensors)


def _split(found: Gguf) -> tuple[int, int]:
    """How many files there are, and which this one is, from 0 on."""
    count, number = found.metadata.get("split.count", 1), found.metadata.get("split.no", 0)
    counts = isinstance(count, int) and isinstance(number, int)
    if not counts or not 0 <= count <= MAX_FILES or not 0 <= number < max(count, 1):
        raise CheckpointError(
            f"{found.file} is damaged: split.no is {number!r} of split.count {count!r}; download it again"
        )
    return count, number


def _read_file(file: Path) -> Gguf:
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                raise CheckpointError(f"{file} is no GGUF file")
            version, tensors, keys = struct.unpack("<IQQ", stream.read(20))
            if version not in (2, 3) or max(tensors, keys) > MAX_COUNT:
                raise CheckpointError(f"{file}: GGUF version {version} with {tensors} tensors is not supported")
            metadata = dict(_pair(stream) for _ in range(keys))
            infos = [_info(stream) for _ in range(tensors)]
            alignment = metadata.get("general.alignment", 32)
            if not isinstance(alignment, int) or alignment < 1:
                raise ValueError(f"general.alignment is {alignment!r}")
            start = -(-stream.tell() // alignment) * alignment
    except (struct.error, UnicodeDecodeError, ValueError, KeyError, MemoryError) as error:
        raise CheckpointError(f"{file} is damaged: {error!r}; download it again") from error
    found = [_tensor(file, info, start, size) for info in infos]
    return Gguf(file, metadata, found)


def _number(stream: BinaryIO, form: str) -> Any:
    return struct.unpack(form, stream.read(struct.calcsize(form)))[0]


def _text(stream: BinaryIO) -> str:
    length = _number(stream, "<Q")
    if length > MAX_COUNT:
        raise ValueError(f"a text of {length} bytes")
    return stream.read(length).decode("utf-8", errors="surrogateescape")


def _value(stream: BinaryIO, kind: int) -> Any:
    if kind == TEXT:
        return _text(stream)
    if kind != ARRAY:
        return _number(stream, NUMBERS[kind])
    inner, count = _number(stream, "<I"), _number(stream, "<Q")
    if count > MAX_COUNT:
        raise ValueError(f"a list of {count} entries")
    if inner == ARRAY:
        raise ValueError("a list of lists")
    if inner == TEXT:
        return [_text(stream) for _ in range(count)]
    form = f"<{count}{NUMBERS[inner][1:]}"
    return list(struct.unpack(form, stream.read(struct.calcsize(form))))


def _pair(stream: BinaryIO) -> tuple[str, Any]:
    return _text(stream), _value(stream, _number(stream, "<I"))


def _info(stream: BinaryIO) -> tuple[str, tuple[int, ...], int, int]:
    name, dims = _text(stream), _number(stream, "<I")
    if dims > 8:
        raise ValueError(f"tensor {name} has {dims} dimensions")
    shape = tuple(_number(stream, "<Q") for _ in range(dims))
    return name, shape[::-1], _number(stream, "<I"), _number(stream, "<Q")


def _tensor(file: Path, info: tuple[str, tuple[int, ...], int, int], start: int, size: int) -> GgufTensor:
    name, shape, number, offset = info
    count = 1
    for n in shape:
        count *= n
    if number in FLOATS:
        kind, per, each = FLOATS[number], 1, 4 if number == 0 else 2
    elif number in BLOCKS:
        kind, per, each = BLOCKS[number]
    else:
        known = ", ".join([*FLOATS.values(), *(block[0] for block in BLOCKS.values())])
        kind = UNREAD.get(number, str(number))
        raise CheckpointError(
            f"{file}: tensor {name} has ggml's type {kind}, which is not supported; take a file of {known}"
        )
    nbytes = count // per * each
    if (shape and shape[-1] % per) or start + offset + nbytes > size:
        raise CheckpointError(f"{file}: tensor {name} does not fit the file; download it again")
    whole = (shape[0] * shape[1], shape[2]) if len(shape) == 3 else shape
    if len(shape) == 1 and name.endswith(ROWS):
        whole = (1, *shape)
    return GgufTensor(name, kind, whole, start + offset, nbytes, file)


def published(name: str, family: Family) -> str:
    """A tensor's name in checkpoints of safetensors; its own where it has none there."""
    module, dot, ending = name.rpartition(".")
    layer = ""
    if module.startswith("blk."):
        _, number, module = module.split(".", 2)
        layer = f"{family.layers}.{number}."
    known = family.names.get(module, NAMES.get(module))
    return name if known is None else f"{layer}{known}{dot}{ending}"
