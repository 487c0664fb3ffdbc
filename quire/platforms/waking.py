"""A driver that takes its time to begin does so in a thread of its own, while torch is imported.

Called by `engine/begin.py`; needs no torch.
"""

import contextlib
import ctypes
import sys
import threading

CUDA = "libcuda.so.1"


def wake(device: str) -> threading.Thread | None:
    """Begin NVIDIA's driver, where there is one. It takes no memory of any device.

    Args:
        device: as the user named it.

    Returns: what begins it; None where a CPU is asked for, or torch is there already and may have begun it.
    """
    if device == "cpu" or "torch" in sys.modules:
        return None
    thread = threading.Thread(target=_begin, name="quire-driver", daemon=True)
    thread.start()
    return thread


def _begin() -> None:
    with contextlib.suppress(OSError):  # torch tells the user what is wrong with a driver
        ctypes.CDLL(CUDA).cuInit(0)
