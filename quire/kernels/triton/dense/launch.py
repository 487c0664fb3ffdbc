"""How dense kernels are launched: dependents first, where the GPU can.

With programmatic dependent launch a kernel starts while the one before it still runs. The contract that makes this
safe: `release` comes first; then only weights may be read; then exactly one `wait` per block, on every path, before
any load of step data and any store to global memory. A kernel without a wait is never launched so.
"""

import functools

import torch
import triton
import triton.language as tl


@functools.cache
def depends(device: torch.device) -> bool:
    """Whether kernels on `device` are launched before their predecessor ends."""
    if triton.knobs.runtime.interpret or device.type != "cuda" or torch.version.cuda is None:
        return False
    return torch.cuda.get_device_capability(device) >= (9, 0)


@functools.cache
def options(device: torch.device) -> dict[str, bool]:
    """What to add to a launch on `device`: the kernel's PDL flag and the option of the launch that belongs to it."""
    return {"PDL": True, "launch_pdl": True} if depends(device) else {"PDL": False}


@functools.cache
def shared_bytes(device: torch.device) -> int:
    """Shared memory that a block may take."""
    if triton.knobs.runtime.interpret:
        return 1 << 20
    index = torch.cuda.current_device() if device.index is None else device.index
    return int(triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"])


@triton.jit
def release(PDL: tl.constexpr):
    """Let the next kernel start."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait(PDL: tl.constexpr):
    """Wait until the previous kernel has ended and what it wrote can be read."""
    if PDL:
        tl.extra.cuda.gdc_wait()
