"""GGUF: one file with metadata, tokenizer, chat template and tensors, read as the folder that it stands for.

`unfold` writes config.json and the tokenizer's files beside a link to the file, so that nothing else needs to know.
Layout: github.com/ggml-org/ggml, docs/gguf.md. Tensors keep ggml's types, which `quantization/formats/gguf.py` reads.
"""

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from quire.base.errors import CheckpointError
from quire.checkpoint.gguf_families import FAMILIES, NAMES, Family

LINK = "model.gguf"
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
MAX_COUNT = 1 << 24


class GgufTensor(msgspec.Struct, frozen=True):
    """One tensor: `shape` as torch has it, `kind` a name of FLOATS or BLOCKS, `nbytes` at `offset` of the file.

    Stacks of experts' matrices are one matrix of all their rows.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class Gguf(msgspec.Struct, frozen=True):
    """What a file holds."""

    metadata: dict[str, Any]
    tensors: list[GgufTensor]

    @property
    def architecture(self) -> str:
        """As the file calls it."""
        return str(self.metadata.get("general.architecture"))


def read_gguf(file: Path) -> Gguf:
    """Metadata and tensors of `file`. Raises CheckpointError where it is damaged or has types that are not known."""
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
    return Gguf(metadata, found)


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
    return GgufTensor(name, kind, whole, start + offset, nbytes)


def published(name: str, architecture: str) -> str:
    """A tensor's name in checkpoints of safetensors; its own where it has none there."""
    module, dot, ending = name.rpartition(".")
    layer = ""
    if module.startswith("blk."):
        _, number, module = module.split(".", 2)
        layer = f"model.layers.{number}."
    family = FAMILIES.get(architecture)
    known = NAMES.get(module) if family is None else family.names.get(module, NAMES.get(module))
    return name if known is None else f"{layer}{known}{dot}{ending}"


def unfold(file: Path, cache: Path | None = None) -> Path:
    """The folder that `file` stands for, made once in `cache`. Raises CheckpointError for what is not supported."""
    from quire.checkpoint.gguf_tokenizer import tokenizer_files

    found = read_gguf(file)
    stat = file.stat()
    key = hashlib.blake2b(f"{file.resolve()}/{stat.st_size}/{stat.st_mtime_ns}".encode(), digest_size=10).hexdigest()
    folder = (cache or Path.home() / ".cache" / "quire" / "gguf") / key
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {"config.json": _config(file, found), **tokenizer_files(file, found.metadata)}.items():
        partial = folder / f"{name}.{os.getpid()}"
        partial.write_text(json.dumps(content), encoding="utf-8")
        partial.replace(folder / name)
    link = folder / LINK
    if not link.is_symlink():
        link.symlink_to(file.resolve())
    return folder


def _config(file: Path, found: Gguf) -> dict[str, Any]:
    """config.json of the model."""
    data, arch = found.metadata, found.architecture
    if arch not in FAMILIES:
        raise CheckpointError(f"{file}: architecture {arch!r} is not supported; supported: {', '.join(FAMILIES)}")
    family = FAMILIES[arch]
    try:
        heads, kinds = data[f"{arch}.attention.head_count"], {tensor.kind for tensor in found.tensors}
        kv_heads = data.get(f"{arch}.attention.head_count_kv", heads)
        hidden, context = data[f"{arch}.embedding_length"], data[f"{arch}.context_length"]
        config = {
            "model_type": family.model_type,
            "vocab_size": len(data["tokenizer.ggml.tokens"]),
            "hidden_size": hidden,
            "intermediate_size": data[f"{arch}.feed_forward_length"],
            "num_hidden_layers": data[f"{arch}.block_count"],
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": data.get(f"{arch}.attention.key_length", hidden // heads),
            "max_position_embeddings": context,
            "rope_theta": data.get(f"{arch}.rope.freq_base", 10000.0),
            "dtype": family.dtype or ("bfloat16" if "BF16" in kinds else "float16"),
            "eos_token_id": data.get("tokenizer.ggml.eos_token_id"),
            "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in found.tensors),
            "quantization_config": {"quant_method": "gguf"},
            **(_experts(data, arch) if f"{arch}.expert_count" in data else {}),
            **_own(file, found, family),
        }
    except KeyError as error:
        raise CheckpointError(f"{file}: the metadata lacks {error}; convert the model again") from None
    if family.permuted:
        config["quantization_config"] = {"quant_method": "gguf", "permuted": {"q_proj": heads, "k_proj": kv_heads}}
    scaling = _rope(file, found, arch, context)
    return {**config, "rope_scaling": scaling} if scaling else config


def _own(file: Path, found: Gguf, family: Family) -> dict[str, Any]:
    """The fields of config.json that not all architectures have. Raises CheckpointError for windows of others."""
    data, arch = found.metadata, found.architecture
    keys = {**family.fields, "rms_norm_eps": "attention.layer_norm_rms_epsilon"}
    fields = {name: data[f"{arch}.{key}"] for name, key in keys.items() if f"{arch}.{key}" in data}
    window = data.get(f"{arch}.attention.sliding_window")
    if "sliding_window" in fields:
        # Phi-4's files say that they have none by 0.
        fields["sliding_window"] = window or None
    elif isinstance(window, int) and 0 < window < data[f"{arch}.context_length"]:
        # OLMo 3 calls itself OLMo 2.
        raise CheckpointError(
            f"{file}: {arch} with attention.sliding_window {window} is not supported; take a checkpoint of safetensors"
        )
    tensors = {tensor.name for tensor in found.tensors}
    fields |= {name: f"blk.0.{ending}" in tensors for name, ending in family.told.items()}
    hidden, heads = data[f"{arch}.embedding_length"], data[f"{arch}.attention.head_count"]
    size, turned = data.get(f"{arch}.attention.key_length", hidden // heads), data.get(f"{arch}.rope.dimension_count")
    if turned is not None and turned < size:
        fields["partial_rotary_factor"] = turned / size
    if family.wide is not None:
        fields["query_pre_attn_scalar"] = hidden / heads if data[f"{arch}.block_count"] == family.wide else size
    return {**family.fixed, **fields}


def _experts(data: dict[str, Any], arch: str) -> dict[str, Any]:
    """What config.json says of experts, which all layers have."""
    return {
        "num_experts": data[f"{arch}.expert_count"],
        "num_experts_per_tok": data[f"{arch}.expert_used_count"],
        "moe_intermediate_size": data[f"{arch}.expert_feed_forward_length"],
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _rope(file: Path, found: Gguf, arch: str, context: int) -> dict[str, Any] | None:
    """How rotary frequencies are stretched: by a divisor of each, for short texts and long ones, or by one factor."""
    divisors = {tensor.name: _numbers(file, tensor) for tensor in found.tensors if tensor.name in ROPE_TENSORS}
    if divisors:
        # Llama 3.1's files have one list for all lengths, Phi-3's two.
        short, long = (divisors.get(f"rope_factors_{name}.weight", divisors.get(ROPE_TENSORS[0])) for name in SPANS)
        return {
            "rope_type": "longrope", "short_factor": short, "long_factor": long,
            "attention_factor": found.metadata.get(f"{arch}.rope.scaling.attn_factor", 1.0),
            "original_max_position_embeddings":
                found.metadata.get(f"{arch}.rope.scaling.original_context_length", context),
        }  # fmt: skip
    kind = found.metadata.get(f"{arch}.rope.scaling.type")
    if kind not in ("linear", "yarn"):
        return None
    scaling = {"rope_type": kind, "factor": found.metadata.get(f"{arch}.rope.scaling.factor", 1.0)}
    original = found.metadata.get(f"{arch}.rope.scaling.original_context_length")
    return {**scaling, "original_max_position_embeddings": original} if original else scaling


def _numbers(file: Path, tensor: GgufTensor) -> list[float]:
    """A small tensor of float32."""
    with file.open("rb") as stream:
        stream.seek(tensor.offset)
        return list(struct.unpack(f"<{tensor.nbytes // 4}f", stream.read(tensor.nbytes)))
