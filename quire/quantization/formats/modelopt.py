"""NVIDIA ModelOpt: FP8, NVFP4, MXFP8, MXFP4, AWQ and INT8 exports, each module as its tensors say.

`weight` beside `weight_scale`; NVFP4 has `weight_scale_2` to multiply with, AWQ `pre_quant_scale` for activations. The
metadata (config.json, or hf_quant_config.json) decides only what becomes of modules in full precision.
"""

from fnmatch import fnmatchcase
from typing import Any

import torch

from quire.base.errors import CheckpointError
from quire.quantization.layouts import CODE_TYPES, Packed, eight_bits, packed, repacked, scale_type, smoothed
from quire.quantization.scaled import Block, Form
from quire.quantization.scheme import (
    HEADS,
    Matrix,
    Range,
    Scheme,
    Source,
    expect,
    group_of,
    group_range,
    present,
    shape_of,
)

METHODS = ("modelopt", "modelopt_fp4", "nvfp4", "modelopt_mixed")
MARKS = (".weight_scale",)
UNUSED = ("input_scale", "weight_shape")
NVFP4 = Form("fp4_e2m1", 16, "float8_e4m3fn", factor="multiply")
MXFP4 = Form("fp4_e2m1", 32, "e8m0")
INT4 = Form("uint4b8", 128, "float32")
ALGORITHMS = {
    "FP8": Form("fp8_e4m3", None), "FP8_PER_CHANNEL_PER_TOKEN": Form("fp8_e4m3", None),
    "FP8_PB_WO": Form("fp8_e4m3", 128), "FP8_BLOCK_SCALES": Form("fp8_e4m3", 128),
    "NVFP4": NVFP4, "W4A16_NVFP4": NVFP4, "NVFP4_AWQ": NVFP4, "W4A8_NVFP4_FP8": NVFP4,
    "MXFP8": Form("fp8_e4m3", 32, "e8m0"), "MXFP4": MXFP4, "W4A8_MXFP4_FP8": MXFP4,
    "W4A16_AWQ": INT4, "W4A8_AWQ": INT4, "INT4_AWQ": INT4,
    "W8A16": Form("int8", None), "W8A8_SQ_PER_CHANNEL": Form("int8", None),
}  # fmt: skip
MIXED = "MIXED_PRECISION"


class ModelOpt:
    """The format of one checkpoint. Raises CheckpointError for a `quant_algo` that is not known."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.algorithm = config.get("quant_algo")
        self.excluded: list[str] = config.get("exclude_modules") or config.get("ignore") or []
        layers: dict[str, Any] = config.get("quantized_layers") or {}
        self.layers = {name: _algorithm(layer.get("quant_algo")) for name, layer in layers.items()}
        self.form = None if self.algorithm in (MIXED, None) else _algorithm(self.algorithm)

    def scheme(self, matrix: Matrix, source: Source) -> Scheme | None:
        """See `Format`."""
        entry = source.entries.get(f"{matrix.module}.weight")
        scale = f"{matrix.module}.weight_scale"
        if entry is None or scale not in source.entries:
            return None
        if entry.dtype in CODE_TYPES:
            made = eight_bits(matrix, source, "weight_scale", present(source, matrix, *UNUSED))
        elif entry.shape == (matrix.outputs, matrix.inputs // 2):
            factor = present(source, matrix, "weight_scale_2")
            made = packed(
                matrix,
                source,
                Packed("fp4_e2m1", "weight", factor=("weight_scale_2", "multiply") if factor else None, unused=UNUSED),
            )
        else:
            made = _along_outputs(matrix, source)
        return smoothed(made, matrix, source)

    def announced(self, matrix: Matrix) -> Form | None:
        """See `Format`."""
        name = matrix.module
        if any(_covers(pattern, name) for pattern in self.excluded):
            return None
        if self.layers:
            return self.layers.get(name)
        return None if name.endswith(HEADS) else self.form


def _algorithm(name: str | None) -> Form:
    form = ALGORITHMS.get(str(name).upper())
    if form is None:
        known = ", ".join([*ALGORITHMS, MIXED])
        raise CheckpointError(f"quant_algo {name!r} is not supported; supported: {known}")
    return form


def _covers(pattern: str, name: str) -> bool:
    """Patterns name a module or all below it; * stands for anything."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _along_outputs(matrix: Matrix, source: Source) -> Scheme:
    """AWQ's integers: two rows in a byte, the even one in the low half, and scales of groups of inputs."""
    weight, scales = f"{matrix.module}.weight", f"{matrix.module}.weight_scale"
    expect(source, weight, (matrix.outputs // 2, matrix.inputs))
    shape = shape_of(source, scales)
    group = group_of(matrix.inputs, shape[1], scales)
    expect(source, scales, (matrix.outputs, matrix.inputs // group))
    form = Form("int4", group, scale_type(source, scales))

    def read(source: Source, rows: Range, columns: Range) -> Block:
        pairs = source.read(weight, (rows[0] // 2, -(-rows[1] // 2)), columns)
        codes = torch.stack((pairs & 15, pairs >> 4), 1).flatten(0, 1)[rows[0] % 2 :][: rows[1] - rows[0]]
        return Block(repacked(codes, 4), source.read(scales, rows, group_range(columns, group)))

    # The second factor of W4A8 belongs to the arithmetic in FP8.
    return Scheme(form, (weight, scales), read, present(source, matrix, *UNUSED, "weight_scale_2"))


def make(config: dict[str, Any]) -> ModelOpt:
    """The format of a checkpoint."""
    return ModelOpt(config)
