"""Writes a quantized checkpoint with random codes, as AWQ's, GPTQ's and NVIDIA's tools lay them out, at disk speed.

Codes repeat every few megabytes, scales are all alike: for how fast such weights load and multiply, not for what they
say. Knows the names of Llama's and Qwen3's parameters only.
"""

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from lib import checkpoint, shapes

GROUP = 128
CHUNK = 8 << 20
"""Bytes that are made once and written over and over."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor of a quantized matrix: what its name ends with, its type and shape, and its first bytes."""

    ending: str
    dtype: str
    shape: tuple[int, ...]
    content: bytes


def _alike(value: float, dtype: torch.dtype) -> bytes:
    return torch.full((CHUNK // dtype.itemsize,), value).to(dtype).view(torch.uint8).numpy().tobytes()


HALF, ONE = _alike(0.002, torch.float16), _alike(0.02, torch.float32)
EIGHTH = _alike(0.125, torch.float8_e4m3fn)
CODES = torch.randint(0, 256, (CHUNK,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy().tobytes()
PLAIN = (torch.randn(CHUNK // 2, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()


def _awq(rows: int, columns: int) -> list[Piece]:
    groups = columns // GROUP
    return [
        Piece("qweight", "I32", (columns, rows // 8), CODES),
        Piece("qzeros", "I32", (groups, rows // 8), CODES),
        Piece("scales", "F16", (groups, rows), HALF),
    ]


def _gptq(rows: int, columns: int) -> list[Piece]:
    groups = columns // GROUP
    order = (torch.arange(columns, dtype=torch.int32) // GROUP).view(torch.uint8).numpy().tobytes()
    return [
        Piece("qweight", "I32", (columns // 8, rows), CODES),
        Piece("qzeros", "I32", (groups, rows // 8), b"\x77" * CHUNK),
        Piece("scales", "F16", (groups, rows), HALF),
        Piece("g_idx", "I32", (columns,), order),
    ]


def _nvfp4(rows: int, columns: int) -> list[Piece]:
    return [
        Piece("weight", "U8", (rows, columns // 2), CODES),
        Piece("weight_scale", "F8_E4M3", (rows, columns // 16), EIGHTH),
        Piece("weight_scale_2", "F32", (), ONE),
        Piece("input_scale", "F32", (), ONE),
    ]


KINDS: dict[str, tuple[dict[str, Any], Callable[[int, int], list[Piece]]]] = {
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}, _awq),
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True}, _gptq),
    "nvfp4": ({"quant_method": "modelopt", "quant_algo": "NVFP4", "exclude_modules": ["lm_head"]}, _nvfp4),
}
"""What config.json says of each format, and the tensors of a matrix of so many rows and columns."""
BYTES = {"I32": 4, "F16": 2, "BF16": 2, "F32": 4, "U8": 1, "F8_E4M3": 1}


def write(kind: str, name: str, parent: Path) -> Path:
    """The folder of model `name` in format `kind` under `parent`."""
    folder, told = shapes.write(name, parent), KINDS[kind][0]
    (folder / "config.json").write_text(json.dumps({**shapes.MODELS[name], "quantization_config": told}))
    tensors, header, at = list(_tensors(kind, shapes.MODELS[name])), {}, 0
    for key, piece in tensors:
        size = prod(piece.shape) * BYTES[piece.dtype]
        header[key] = {"dtype": piece.dtype, "shape": piece.shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, piece in tensors:
            left = prod(piece.shape) * BYTES[piece.dtype]
            while left:
                left -= file.write(memoryview(piece.content)[:left])
    return folder


def _tensors(kind: str, config: dict[str, Any]) -> Iterator[tuple[str, Piece]]:
    """Names and tensors: quantized where they are products within layers."""
    plain, ones = (values.view(torch.uint8).numpy().tobytes() for values in (PLAIN, torch.ones(CHUNK // 2).bfloat16()))
    for key, shape in checkpoint.parameters(config):
        if key.endswith("_proj.weight"):
            rows, columns = shape
            for piece in KINDS[kind][1](rows, columns):
                yield key.removesuffix("weight") + piece.ending, piece
        else:
            yield key, Piece("weight", "BF16", tuple(shape), ones if len(shape) == 1 else plain)
