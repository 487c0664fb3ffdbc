"""Notes kernels without a GPU, has them compiled for one, and looks whether launches find them: prints JSON.

Run as a program by test_ahead, without Triton's interpreter, which keeps kernels from being compiled.
"""

import json

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from quire.kernels.triton.ahead import Compiler
from quire.kernels.triton.attention import runs
from quire.kernels.triton.dense.activation import triton_gated_activation
from quire.kernels.triton.dense.norm import triton_rms_norm
from quire.ops.activation import GateSpec
from quire.ops.norm import NormSpec


class Driver:
    """Of a GPU that is not there."""

    class utils:  # noqa: N801 as Triton calls it
        """Nothing is loaded."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def steps():
    for size in (64, 512):
        x = torch.zeros(3, size, dtype=torch.bfloat16)
        triton_rms_norm(x, x[0], NormSpec(size, 1e-6, dtype="bfloat16"))
    triton_gated_activation(torch.zeros(2, 128), GateSpec(64, "silu"))


def main():
    driver.set_active(Driver())
    compiler = Compiler(2)
    before = compiler.knows("a run")
    compiler.begin()
    with compiler.noting():
        steps()
        steps()
        noted = len(compiler._skipped)
    compiler.compile("a run")
    launch = JITFunction.run
    JITFunction.run = lambda *args, warmup, **rest: launch(*args, warmup=True, **rest)
    found = []
    triton.knobs.compilation.listener = lambda **event: found.append([event["src"].name, event["cache_hit"]])
    # A name depends on what has been named before, unless that is always the same.
    assert runs.run_of_splits.cache_key
    steps()
    print(
        json.dumps(
            {"known": [before, compiler.knows("a run"), compiler.knows("another")], "noted": noted, "found": found}
        )
    )


if __name__ == "__main__":
    main()
