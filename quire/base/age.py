"""How old this process is."""

import os
import time
from pathlib import Path

import psutil


def process_age_s() -> float:
    """Seconds since this process was started."""
    status = Path("/proc/self/stat")
    if not status.exists():
        return time.time() - psutil.Process().create_time()
    # psutil adds the boot time, which Linux gives in whole seconds; field 22 of proc(5) counts ticks since the boot.
    ticks = int(status.read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
