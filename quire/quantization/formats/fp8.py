"""FP8 as DeepSeek and Qwen ship it, in blocks of 128 x 128, and per tensor or row as transformers and FBGEMM write it.

`weight` e4m3 (outputs, inputs) beside `weight_scale_inv`, which despite its name is multiplied with, or `weight_scale`.
"""

from typing import Any

from quire.quantization.layouts import CODE_TYPES, eight_bits
from quire.quantization.scaled import Form
from quire.quantization.scheme import HEADS, Matrix, Scheme, Source, present

METHODS = ("fp8", "fbgemm_fp8", "deepseek_fp8")
MARKS = (".weight_scale_inv",)
UNUSED = ("input_scale", "activation_scale", "input_scale_ub")


class Fp8:
    """The format of one checkpoint."""

    def __init__(self, config: dict[str, Any]) -> None:
        size = config.get("weight_block_size")
        self.block = (int(size[0]), int(size[1])) if size else None
        self.skipped = config.get("modules_to_not_convert") or config.get("ignored_layers") or []

    def scheme(self, matrix: Matrix, source: Source) -> Scheme | None:
        """See `Format`."""
        entry = source.entries.get(f"{matrix.module}.weight")
        if entry is None or entry.dtype not in CODE_TYPES:
            return None
        found = present(source, matrix, "weight_scale_inv", "weight_scale")
        scale = found[0].rsplit(".", 1)[1] if found else "weight_scale"
        return eight_bits(matrix, source, scale, present(source, matrix, *UNUSED), self.block)

    def announced(self, matrix: Matrix) -> Form | None:
        """See `Format`. Heads and what the metadata lists, by name or part of it, stay."""
        if any(f".{name}." in f".{matrix.module}." for name in (*HEADS, *self.skipped)):
            return None
        if self.block is None:
            return Form("fp8_e4m3", None)
        return Form("fp8_e4m3", self.block[1])


def make(config: dict[str, Any]) -> Fp8:
    """The format of a checkpoint."""
    return Fp8(config)
