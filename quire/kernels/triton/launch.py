"""How kernels are launched, and what launches must know of a device: what all of Triton's kernels share.

With programmatic dependent launch a kernel starts while the one before it still runs. The contract that makes this
safe: `release` comes first; then only weights may be read, and what was there before the kernel before began; then
exactly one `wait` per block, on every path, before any load of step data and any store to global memory. A kernel
without a wait is never launched so.
"""

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Programs run one after another on a CPU, as torch has no device for them. The interpreter multiplies no bfloat16
matrices: there, products take float32."""


@dataclass(frozen=True, slots=True)
class Device:
    """What a device has.

    Attributes:
        processors: multiprocessors.
        nvidia: whether NVIDIA's compiler makes its code.
        dependent: kernels can be launched before their predecessor ends, and there is a bulk copy engine.
        converts: instructions convert numbers of 8 bits.
        shared_bytes: shared memory that a block may take.
    """

    processors: int
    nvidia: bool
    dependent: bool
    converts: bool = False
    shared_bytes: int = 1 << 20

    def stages(self, wanted: int) -> int:
        """How deep loops are pipelined: other makers' chips have 64 KiB of shared memory, which two stages fill."""
        return wanted if self.nvidia else min(wanted, 2)

    @property
    def options(self) -> dict[str, bool]:
        """What to add to a launch: the kernel's own flag, and the option that belongs to it."""
        return {"PDL": True, "launch_pdl": True} if self.dependent else {"PDL": False}


@functools.cache
def device_of(device: torch.device) -> Device:
    """What launches must know of `device`."""
    if INTERPRETED or device.type not in ("cuda", "xpu"):
        return Device(1 if INTERPRETED else 64, False, False)
    index = torch.accelerator.current_device_index() if device.index is None else device.index
    shared = int(triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"])
    if device.type != "cuda":
        return Device(64, False, False, shared_bytes=shared)
    facts = torch.cuda.get_device_properties(device)
    nvidia = torch.version.hip is None
    capability = (facts.major, facts.minor)
    dependent, converts = nvidia and facts.major >= 9, nvidia and capability >= (8, 9)
    return Device(facts.multi_processor_count, nvidia, dependent, converts, shared)


def cdiv(x: int, y: int) -> int:
    """x / y, rounded up. Triton's own, which kernels can call, too, takes the host some microseconds."""
    return -(-x // y)


def next_power_of_2(n: int) -> int:
    """The least power of 2 that is not below `n`; 1 of 0. Triton's own is as slow as its `cdiv`."""
    return 1 << max(n - 1, 0).bit_length()


@triton.jit
def release(PDL: tl.constexpr):
    """Let the next kernel start: the first thing that a kernel does."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait(PDL: tl.constexpr):
    """Wait until the previous kernel has ended and what it wrote can be read."""
    if PDL:
        tl.extra.cuda.gdc_wait()


@triton.jit
def begin(PDL: tl.constexpr):
    """The first thing that a kernel does which has nothing to fetch early."""
    release(PDL)
    wait(PDL)
