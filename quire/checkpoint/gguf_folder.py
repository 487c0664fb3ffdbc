"""The folder that a GGUF file stands for: config.json, the tokenizer's files, links. Nothing else needs to know of it.

Config fields come from the metadata as `gguf_families.py` says. Called where a checkpoint's name is looked up.
"""

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

from quire.base.errors import CheckpointError
from quire.checkpoint.gguf import ROPE_TENSORS, SPANS, Gguf, GgufTensor, parts_of, read_gguf
from quire.checkpoint.gguf_families import Family
from quire.checkpoint.gguf_tokenizer import ends, tokenizer_files

LINK = "model.gguf"


def unfold(file: Path, cache: Path | None = None) -> Path:
    """The folder that `file` stands for, made once in `cache`. Raises CheckpointError for what is not supported."""
    found = read_gguf(file)
    count = found.metadata.get("split.count", 1)
    files = [part.resolve() for part in parts_of(file, count)]
    folder = (cache or Path.home() / ".cache" / "quire" / "gguf") / _key(files)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {"config.json": _config(file, found), **tokenizer_files(file, found.metadata)}.items():
        partial = folder / f"{name}.{os.getpid()}"
        partial.write_text(json.dumps(content), encoding="utf-8")
        partial.replace(folder / name)
    for link, part in zip(parts_of(folder / LINK, count), files, strict=True):
        if not link.is_symlink():
            link.symlink_to(part)
    return folder


def _key(files: list[Path]) -> str:
    """Another one as soon as any of the files is another: two revisions may share the first."""
    stats = [(str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
    return hashlib.blake2b(json.dumps(stats).encode(), digest_size=10).hexdigest()


def _config(file: Path, found: Gguf) -> dict[str, Any]:
    """config.json of the model."""
    data, arch, family = found.metadata, found.architecture, found.family
    try:
        heads, kinds = data[f"{arch}.attention.head_count"], {tensor.kind for tensor in found.tensors}
        kv_heads = data.get(f"{arch}.attention.head_count_kv", heads)
        hidden, context = data[f"{arch}.embedding_length"], data[f"{arch}.context_length"]
        config: dict[str, Any] = {
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
            "eos_token_id": ends(data),
            "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in found.tensors),
            "quantization_config": {"quant_method": "gguf", "turned": list(family.turned)},
            **(_experts(data, arch) if f"{arch}.expert_count" in data else {}),
            **_own(file, found, family),
        }
    except KeyError as error:
        raise CheckpointError(f"{file}: the metadata lacks {error}; convert the model again") from None
    if family.permuted:
        config["quantization_config"] |= {"permuted": {"q_proj": heads, "k_proj": kv_heads}}
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
    divisors = {tensor.name: _numbers(tensor) for tensor in found.tensors if tensor.name in ROPE_TENSORS}
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


def _numbers(tensor: GgufTensor) -> list[float]:
    """A small tensor of float32."""
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.offset)
        return list(struct.unpack(f"<{tensor.nbytes // 4}f", stream.read(tensor.nbytes)))
