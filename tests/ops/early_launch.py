"""Compiles kernels for Hopper, without a GPU, and reads in their PTX what is touched before they wait.

A program of its own, because a process that interprets Triton's kernels cannot compile them: prints one line of JSON,
`[[kernel, complaint], ...]`.
"""

import itertools
import json
import re
from collections.abc import Iterator

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from quire.kernels.triton.attention import cascade, heads, runs, splits
from quire.kernels.triton.dense import activation, gemv, norm, quantized, skinny

GEMV = {
    "K": 1024,
    "N": 256,
    "EPS": 1e-6,
    "OFFSET": 0.0,
    "OUTPUTS": 4,
    "CHUNK": 512,
    "AHEAD": 1,
    "BIAS": True,
    "PDL": True,
}
SKINNY = {"K": 1024, "N": 256, "OUTPUTS": 64, "DEPTH": 128, "STAGES": 3, "BIAS": True, "WIDEN": False, "PDL": True}
HEADS = {"HEADS": 8, "KV_HEADS": 2, "D": 128, "DP": 128, "NORM": True, "ROTARY": 128, "PDL": True}
HEADS |= {"FORMAT": 0, "CONVERTS": False}
DECODE = {
    **HEADS,
    "v_pairs": None,
    "sinks": None,
    "GROUP": 4,
    "TILE": 64,
    "STAGES": 5,
    "CAP": 0.0,
    "WIDE": False,
    "BEGINS": True,
}
MERGE = {"GROUP_P": 4, "AT_ONCE": 8}
MERGE_ROWS = {name: HEADS[name] for name in ("HEADS", "KV_HEADS", "D", "DP", "PDL")} | {"GROUP": 4, **MERGE}
LISTED = {"splits", "total", "firsts", "tiles", "places", "runs"}
EARLIER = LISTED | {"k_pool", "v_pool", "new_slots", "angles", "q_norm", "k_norm"}
"""What is there before a step's first attention: `quire.kernels.triton.attention.listing` says why."""
SHARED = {**HEADS, "GROUP": 4, "LINES": 64, "PAGE": 64, "TILE": 64, "STAGES": 3, "CAP": 0.0, "WIDE": False}
SHARED |= {"k_bulk": None, "v_bulk": None}
WORDS = {"K": 1024, "N": 256, "BIAS": True, "NATIVE": True, "PDL": True, "ROW_BLOCK": 1}
INT4 = {"KIND": "uint4b8", "SCALE": "float16", "BITS": 4, "GROUP": 128, "GROUPS": 8, "ZEROS": True, "FACTOR": ""}
NVFP4 = {"KIND": "fp4_e2m1", "SCALE": "float8_e4m3fn", "BITS": 4, "GROUP": 16, "GROUPS": 64, "ZEROS": False}
NVFP4 |= {"FACTOR": "multiply"}
FP8 = {"KIND": "fp8_e4m3", "SCALE": "float32", "BITS": 8, "GROUP": 0, "GROUPS": 1, "ZEROS": False, "FACTOR": ""}
WORDS_TYPES = {"words": "*u16", "zeros": "*u8", "factors": "*fp32"}
SCALE_TYPES = {"float32": "*fp32", "float16": "*fp16", "float8_e4m3fn": "*u8"}
NORM = {"eps": 1e-6, "offset": 0.0, "SIZE": 1024, "BLOCK": 1024, "PDL": True}


def variants() -> Iterator[tuple[triton.JITFunction, dict[str, object], set[str]]]:
    """Kernels with their constants and the names of the arguments that are weights."""
    for add in (False, True):
        yield norm._norm_kernel, {**NORM, "ADD": add}, {"weight"}
    yield activation._gate_kernel, {"INNER": 512, "KIND": "silu", "SIZE": 512, "PDL": True}, set()
    weights = {"weight", "norm_weight", "bias"}
    for held, normed, gate in ((2, True, ""), (1, False, ""), (2, True, "silu"), (1, True, "gelu_tanh")):
        yield gemv._gemv_kernel, {**GEMV, "HELD": held, "NORM": normed, "ADD": normed, "GATE": gate}, weights
    alone = {"CHUNK": 256, "OUTPUTS": 8, "HELD": 2, "AHEAD": 2, "NORM": True, "ADD": True}
    for gate in ("", "silu"):
        yield gemv._gemv_kernel, {**GEMV, **alone, "GATE": gate}, weights
    for rows, held, parts, gate in (
        (16, 4, 2, ""),
        (16, 1, 2, "silu"),
        (64, 0, 1, "silu"),
        (64, 0, 2, ""),
        (128, 0, 1, ""),
    ):
        ahead = {"HELD": held, "FETCH": 0 if held == 4 else 8}
        yield skinny._skinny_kernel, {**SKINNY, **ahead, "ROWS": rows, "PARTS": parts, "GATE": gate}, weights
    weights = {"words", "scales", "zeros", "factors", "bias"}
    few = {"OUTPUTS": 64, "DEPTH": 32, "STAGES": 4, "FETCH": 8, "WIDEN": False}
    for form, gate in itertools.product((INT4, NVFP4, FP8), ("", "silu")):
        shape = {"OUTPUTS": 4, "UNITS": 128, "AHEAD": 1, "DOTS": form is INT4}
        yield quantized.gemv._gemv_kernel, {**WORDS, **form, **shape, "GATE": gate}, weights
        yield quantized.skinny._skinny_kernel, {**WORDS, **form, **few, "ROWS": 16, "PARTS": 2, "GATE": gate}, weights
    yield heads._prepare, {**HEADS, "BLOCK": 8}, set()
    whole = {name: value for name, value in HEADS.items() if name not in ("DP", "ROTARY")}
    yield heads._prepare_whole, {**whole, "BLOCK": 16}, set()
    for pieces in (1, 4):
        yield splits.early, {**DECODE, **MERGE, "PIECES": pieces, "ROWS": 16}, EARLIER
        yield runs.run_of_splits, {**_prepared(DECODE), "PIECES": pieces, "COLUMNS": 8}, LISTED
    yield runs.merge_rows, MERGE_ROWS, LISTED
    yield cascade._attend_shared, _prepared(SHARED), set()


def _prepared(constants: dict[str, object]) -> dict[str, object]:
    """Constants of a kernel before which heads have been normed and rotated."""
    return {name: value for name, value in constants.items() if name not in ("NORM", "ROTARY")}


def ptx_of(kernel: triton.JITFunction, constants: dict[str, object]) -> tuple[str, list[str]]:
    """The PTX, and the names of the arguments that it still has."""
    names = kernel.arg_names
    kinds = {"counters": "*i32", "partial": "*fp32", "rows": "i32", "stride": "i32"}
    kinds |= {"x_stride": "i32", "delta_stride": "i32", "table_stride": "i32", "scale": "fp32", "eps": "fp32"}
    kinds |= dict.fromkeys(("table", "arrived", *LISTED), "*i32")
    kinds |= dict.fromkeys(("lengths", "members", "items", "first_parts"), "*i32")
    kinds |= dict.fromkeys(("v_scale", "k_inverse", "v_inverse"), "fp32")
    kinds |= {"slots": "*i64", "new_slots": "*i64", "positions": "*i64", "angles": "*fp32", "logs": "*fp32"}
    if "words" in names:
        kinds |= {**WORDS_TYPES, "scales": SCALE_TYPES[str(constants["SCALE"])]}
    signature = {name: "constexpr" if name in constants else kinds.get(name, "*bf16") for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
    source = ASTSource(kernel, signature, {(names.index(k),): v for k, v in constants.items()}, aligned)
    options = {"num_warps": 4, "launch_pdl": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    return compiled.asm["ptx"], [name for name in names if name not in constants]


def complaints(ptx: str, arguments: list[str], weights: set[str]) -> Iterator[str]:
    """Follow which arguments each register comes from, up to the wait."""
    if ptx.count("griddepcontrol.wait") != 1:
        yield f"{ptx.count('griddepcontrol.wait')} waits"
        return
    before, after = ptx.split("griddepcontrol.wait")
    if "griddepcontrol.launch_dependents" not in before:
        yield "the next kernel is not released before the wait"
    if re.search(r"^\s*(@\S+\s+)?bra\b", before, re.M):
        yield "a branch before the wait"
    if re.search(r"griddepcontrol", after):
        yield "a release after the wait"
    origin: dict[str, set[str]] = {}
    for line in re.split(r"[;\n]", before):
        if match := re.search(r"\b(ld\.global|prefetch|cp\.async|st\.global|atom|red)\b\S*\s.*?\[\s*(%\w+)", line):
            touched = origin.get(match[2], set())
            if match[1] in ("st.global", "atom", "red") or not touched or not touched <= weights:
                yield f"{match[0].strip()} touches {sorted(touched) or 'something'} before the wait"
            continue
        registers = re.findall(r"%\w+", line)
        if parameter := re.search(r"_param_(\d+)\]", line):
            number = int(parameter[1])
            origin[registers[0]] = {arguments[number]} if number < len(arguments) else set()
        elif registers:
            sources = [origin.get(register, set()) for register in registers[1:]]
            origin[registers[0]] = set().union(*sources)


def main() -> None:
    """Print what is wrong with any variant."""
    found = []
    for kernel, constants, weights in variants():
        ptx, arguments = ptx_of(kernel, constants)
        # Integers are no addresses; what they add to one does not count.
        numbers = {"rows", "stride", "x_stride", "delta_stride", "table_stride"}
        found += [[f"{kernel.__name__} {constants}", text] for text in complaints(ptx, arguments, weights | numbers)]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
