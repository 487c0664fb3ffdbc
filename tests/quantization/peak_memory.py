"""Prints what quantizing a checkpoint while it loads takes at most, and what is left of it: JSON, in bytes.

Run as a program by test_memory, since only a process's own peak can be measured. What is read at once is as small
beside the checkpoint as it is beside one of many gigabytes.
"""

import gc
import json
import re
import sys
from pathlib import Path

from quire.loading import load, reader, staging
from tests.models.driver import Driver

BLOCK = 1 << 16


def resident(name: str) -> int:
    """VmRSS, what is in memory now, or VmHWM, the most since the last reset."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def measured(folder: Path, quantization: str) -> dict[str, int]:
    """What loading adds at its peak, and the bytes of the parameters."""
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    driver = Driver(folder, 4, quantization=quantization, pages=2)
    added = resident("VmHWM") - before
    return {"peak": added, "held": sum(weight.nbytes for weight in driver.model.parameters())}


def main() -> None:
    reader.BLOCK_BYTES = staging.BLOCK_BYTES = BLOCK
    load.MAX_READERS = 2
    warm, folder, *names = sys.argv[1:]
    # Code and tables of all that runs are in memory by then.
    for name in names:
        measured(Path(warm), name)
    print(json.dumps({name: measured(Path(folder), name) for name in names}))


if __name__ == "__main__":
    main()
