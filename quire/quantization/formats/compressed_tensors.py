"""compressed-tensors, as llm-compressor writes it: packed integers, 8-bit integers and floats, NVFP4, MXFP4.

`weight_packed` or `weight` beside `weight_scale`, with `weight_zero_point`, `weight_g_idx` or `weight_global_scale`
(which scales are divided by) where the scheme has them.
"""

import re
from typing import Any

import torch
from torch import Tensor

from quire.base.errors import CheckpointError
from quire.quantization.elements import unpack
from quire.quantization.layouts import CODE_TYPES, Packed, eight_bits, packed, with_zeros
from quire.quantization.scaled import Form
from quire.quantization.scheme import Matrix, Range, Scheme, Source, present

METHODS = ("compressed-tensors", "compressed_tensors")
MARKS = (".weight_packed",)
UNUSED = ("weight_shape", "input_scale", "input_zero_point", "input_global_scale")


class CompressedTensors:
    """The format of one checkpoint."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.ignored: list[str] = config.get("ignore") or []
        self.groups: list[dict[str, Any]] = list((config.get("config_groups") or {}).values())

    def scheme(self, matrix: Matrix, source: Source) -> Scheme | None:
        """See `Format`."""
        codes, weight = (source.entries.get(f"{matrix.module}.{name}") for name in ("weight_packed", "weight"))
        unused = present(source, matrix, *UNUSED)
        if codes is not None and codes.dtype == "I32":
            return self._integers(matrix, source, codes.shape[-1])
        if codes is not None:
            factor = present(source, matrix, "weight_global_scale")
            bits = 8 * codes.shape[1] // matrix.inputs
            element = {4: "fp4_e2m1", 6: self._six(matrix)}.get(bits, "uint8")
            how = Packed(element, "weight_packed", unused=UNUSED)
            if factor:
                how = Packed(element, "weight_packed", factor=("weight_global_scale", "divide"), unused=UNUSED)
            return packed(matrix, source, how)
        if weight is None or weight.dtype not in CODE_TYPES:
            return None
        zeros = present(source, matrix, "weight_zero_point")
        made = eight_bits(matrix, source, "weight_scale", unused)
        return with_zeros(made, zeros[0]) if zeros and weight.dtype == "I8" else made

    def _integers(self, matrix: Matrix, source: Source, words: int) -> Scheme:
        bits = next((n for n in range(2, 9) if -(-matrix.inputs * n // 32) == words), None)
        if bits is None:
            raise CheckpointError(f"tensor {matrix.module}.weight_packed has {words} words for {matrix.inputs} inputs")
        zeros, half = f"{matrix.module}.weight_zero_point", 1 << (bits - 1)

        def zero_points(source: Source, rows: Range, groups: Range) -> Tensor:
            found = source.read(zeros)
            if found.dtype != torch.int32:
                return (found[slice(*rows), slice(*groups)].int() + half).to(torch.uint8)
            columns = found[:, slice(*groups)].T.contiguous().view(torch.uint8)
            return unpack(columns, bits, matrix.outputs)[:, slice(*rows)].T

        asymmetric = zeros in source.entries
        how = Packed(
            f"uint{bits}" if asymmetric else f"uint{bits}b{half}",
            "weight_packed",
            zeros=zero_points if asymmetric else None,
            order="weight_g_idx",
            unused=UNUSED,
        )
        made = packed(matrix, source, how)
        return Scheme(
            made.form, (*made.names, zeros) if asymmetric else made.names, made.read, made.unused, groups=made.groups
        )

    def announced(self, matrix: Matrix) -> Form | None:
        """See `Format`."""
        name = matrix.module
        if any(_matches(entry, name) for entry in self.ignored):
            return None
        for group in self.groups:
            targets = group.get("targets") or []
            if "Linear" in targets or any(_matches(target, name) for target in targets):
                return _form(group.get("weights") or {})
        return None

    def _six(self, matrix: Matrix) -> str:
        """MXFP6 comes in two types; the metadata tells which."""
        return "fp6_e3m2" if any("e3m2" in str(group).lower() for group in self.groups) else "fp6_e2m3"


def _matches(pattern: str, name: str) -> bool:
    """Names of modules, or `re:` and an expression that they begin with."""
    if pattern.startswith("re:"):
        return re.match(pattern[3:], name) is not None
    return name == pattern or name.endswith(f".{pattern}")


def _form(weights: dict[str, Any]) -> Form | None:
    bits, kind, group = weights.get("num_bits"), weights.get("type"), weights.get("group_size")
    if kind == "float" and bits == 8:
        return Form("fp8_e4m3", None)
    if kind == "float" and bits == 4:
        return Form("fp4_e2m1", 32, "e8m0") if group == 32 else Form("fp4_e2m1", 16, "float8_e4m3fn", factor="multiply")
    if kind == "int" and isinstance(bits, int) and 2 <= bits <= 8:
        return Form(f"uint{bits}b{1 << (bits - 1)}", group if isinstance(group, int) and group > 0 else None)
    return None


def make(config: dict[str, Any]) -> CompressedTensors:
    """The format of a checkpoint."""
    return CompressedTensors(config)
