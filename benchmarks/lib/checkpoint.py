"""Writes a checkpoint with random weights, for engines that read files: config.json, a tokenizer, one safetensors file.

Weights are normal with the config's deviation, norms are 1. Knows the names of Llama's and Qwen3's parameters only.
"""

import json
import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import torch

from lib import shapes


def write(name: str, parent: Path) -> Path:
    """The folder of model `name` under `parent`; one that is there is taken as it is."""
    folder = parent / name
    target = folder / "model.safetensors"
    if target.exists():
        return folder
    shapes.write(name, parent)
    tensors = list(parameters(shapes.MODELS[name]))
    header, at = {}, 0
    for key, shape in tensors:
        size = 2 * prod(shape)
        header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator().manual_seed(0)
    partial = target.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, shape in tensors:
            values = torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) * 0.02
            file.write(values.bfloat16().view(torch.uint8).numpy().tobytes())
    partial.rename(target)
    return folder


def parameters(config: dict[str, Any]) -> Iterator[tuple[str, list[int]]]:
    """Names and shapes."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, keys = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    yield "model.embed_tokens.weight", [config["vocab_size"], hidden]
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}"
        for kind, rows in (("q", queries), ("k", keys), ("v", keys)):
            yield f"{at}.self_attn.{kind}_proj.weight", [rows, hidden]
        yield f"{at}.self_attn.o_proj.weight", [hidden, queries]
        if config["model_type"] == "qwen3":
            yield f"{at}.self_attn.q_norm.weight", [dim]
            yield f"{at}.self_attn.k_norm.weight", [dim]
        for kind in ("gate", "up"):
            yield f"{at}.mlp.{kind}_proj.weight", [inner, hidden]
        yield f"{at}.mlp.down_proj.weight", [hidden, inner]
        yield f"{at}.input_layernorm.weight", [hidden]
        yield f"{at}.post_attention_layernorm.weight", [hidden]
    yield "model.norm.weight", [hidden]
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", [config["vocab_size"], hidden]
