"""Kernels in Triton: for NVIDIA, AMD and Intel GPUs, and for CPUs under Triton's interpreter, which tests them."""

import torch
import triton

from quire.kernels.triton import ahead, attention, dense, moe, recurrent, step
from quire.platforms.host import has_compiler

__all__ = ["ahead", "attention", "dense", "moe", "recurrent", "step"]

if torch.version.hip is None and torch.cuda.is_available() and not (triton.knobs.build.impl or has_compiler()):
    # What Triton itself would launch by cannot be compiled. Other makers' builds lack what this derives from.
    from quire.kernels.triton.driver import Driver

    triton.runtime.driver.set_active(Driver())
