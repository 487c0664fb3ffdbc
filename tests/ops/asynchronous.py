"""Compiles the kernel that reads prompts for Hopper, without a GPU, and counts in its machine code what waits for sums.

A program of its own, because a process that interprets Triton's kernels cannot compile them: prints one line of JSON,
the number of products of matrices, and of waits for them.
"""

import json
import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from quire.kernels.triton.attention import prefill

SHAPE = prefill.shape_of(128, prefill.torch.bfloat16, 4096, engine=True)
SIZES = {"HEADS": 32, "KV_HEADS": 8, "D": 128, "DP": 128, "GROUP": 4, "GROUP_P": 4, "ROWS": SHAPE.lines, "PAGE": 64}
SIZES |= {"TILE": SHAPE.tile, "STAGES": SHAPE.stages, "WINDOW": 0, "CAP": 0.0, "WIDE": False, "FORMAT": 0}
SIZES |= {"CONVERTS": False, "CHUNK": 0, "ALIKE": False, "sinks": None}


def machine_code() -> str:
    """What the assembler makes of `_prefill`, as `cuobjdump` shows it."""
    names = prefill._prefill.arg_names
    kinds = dict.fromkeys(("table", "lengths", "blocks", "total"), "*i32")
    kinds |= {"table_stride": "i32", "scale": "fp32", "v_scale": "fp32"}
    kinds |= dict.fromkeys(("k_bulk", "v_bulk"), f"tensordesc<bf16[{prefill.COPIED},128]>")
    signature = {name: "constexpr" if name in SIZES else kinds.get(name, "*bf16") for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
    source = ASTSource(prefill._prefill, signature, {(names.index(k),): v for k, v in SIZES.items()}, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": SHAPE.warps})
    dump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        return subprocess.run([dump, "--dump-sass", file.name], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    code = machine_code()
    print(json.dumps([len(re.findall(rf"\b{name}", code)) for name in ("HGMMA", r"WARPGROUP\.DEPBAR")]))
