"""How much memory is free, and how much the largest step needs, both measured.

`HostMemory` reads the process's own high-water mark; `DeviceMemory` asks torch's allocator of the accelerator. The
runner asks before pages are sized.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import psutil
import torch

from quire.platforms.host import group_limit_bytes


class Memory(Protocol):
    """Memory of the device that a rank computes on."""

    def free_bytes(self) -> int:
        """Memory that nobody uses now."""
        ...

    def kept_bytes(self) -> int:
        """Memory that tensors and recordings hold."""
        ...

    def budget(self, free: int, fraction: float, needed: int) -> int:
        """What pages may take of `free` bytes, when a step needs `needed` and the engine may use `fraction`."""
        ...

    def peak(self) -> contextlib.AbstractContextManager[list[int]]:
        """Measure: the list holds, after the block, the bytes that the block needed beyond those in use before it."""
        ...


class HostMemory:
    """The machine's memory, for ranks on the CPU. The fraction is of what is free: others live here too."""

    def free_bytes(self) -> int:
        """Memory that could be taken without swapping."""
        used = psutil.Process().memory_info().rss
        return min(psutil.virtual_memory().available, max(0, group_limit_bytes() - used))

    def kept_bytes(self) -> int:
        """Nothing: steps are recorded on accelerators alone."""
        return 0

    def budget(self, free: int, fraction: float, needed: int) -> int:
        """A share of the free memory, and never what a step needs."""
        return max(0, min(int(free * fraction), free - needed))

    @contextlib.contextmanager
    def peak(self) -> Iterator[list[int]]:
        """Growth of resident memory at its high-water mark; without /proc, the growth left at the end of the block."""
        measured: list[int] = []
        # Writing 5 resets the high-water mark of this process (Linux, proc(5)); elsewhere the old mark stands.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        before = psutil.Process().memory_info().rss
        yield measured
        measured.append(max(0, _high_water_bytes() - before))


class DeviceMemory:
    """Memory of an accelerator, through torch's module for it (torch.cuda also serves ROCm; torch.xpu).

    The fraction is of the whole device, so that it says how much the engine takes in all.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.module = torch.get_device_module(device)

    def free_bytes(self) -> int:
        """Free on the device, once torch has given back what it caches."""
        self._release_cached()
        return int(self.module.mem_get_info(self.device)[0])

    def kept_bytes(self) -> int:
        """What torch has of the device once it has given back what it caches."""
        self._release_cached()
        return int(self.module.memory_reserved(self.device))

    def budget(self, free: int, fraction: float, needed: int) -> int:
        """The engine's share of the device, less what is taken already and what a step needs."""
        total = int(self.module.mem_get_info(self.device)[1])
        return max(0, int(total * fraction) - (total - free) - needed)

    @contextlib.contextmanager
    def peak(self) -> Iterator[list[int]]:
        """Peak of torch's allocations within the block, beyond those before it."""
        measured: list[int] = []
        # What torch caches of earlier steps is found again in pieces larger than asked for, which count whole.
        self._release_cached()
        self.module.reset_peak_memory_stats(self.device)
        before = int(self.module.memory_allocated(self.device))
        yield measured
        self.module.synchronize(self.device)
        measured.append(int(self.module.max_memory_allocated(self.device)) - before)

    def _release_cached(self) -> None:
        self.module.synchronize(self.device)
        self.module.empty_cache()


def memory_of(device: torch.device) -> Memory:
    """The memory that `device` computes in."""
    return HostMemory() if device.type == "cpu" else DeviceMemory(device)


def _high_water_bytes() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    return int(psutil.Process().memory_info().rss)
