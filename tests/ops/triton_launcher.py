"""Compiles a kernel for Hopper, without a GPU, and makes our launcher of what Triton says of it.

A program of its own, because a process that interprets Triton's kernels cannot compile them: prints one line of JSON,
the bits of each of the kernel's parameters in PTX, those of the launcher, and the threads and shared memory of a block.
"""

import json
import re
import struct

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from quire.kernels.triton import driver


@triton.jit
def kernel(x, flag, n, scale, size: tl.constexpr, out):
    """The first n of x times scale."""
    at = tl.arange(0, size)
    tl.store(out + at, tl.load(x + at, mask=(at < n) & flag) * scale, mask=at < n)


def main() -> None:
    """Print what is said."""
    signature = {"x": "*fp32", "flag": "u1", "n": "i64", "scale": "fp32", "size": "constexpr", "out": "*fp32"}
    source = ASTSource(kernel, signature, {(4,): 64})
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 2})
    launcher = driver.Launcher(compiled.src, compiled.metadata)
    wanted = [int(bits) for bits in re.findall(r"\.param \.[a-z](\d+)", compiled.asm["ptx"])]
    given = [8 * struct.calcsize(code) for code in launcher._packer.format.removeprefix("@")]
    print(json.dumps([wanted, given, launcher._config.block[0], launcher._config.shared_bytes]))


if __name__ == "__main__":
    main()
