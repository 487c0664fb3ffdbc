"""A driver that takes its time to begin does so in a thread of its own, while torch is imported.

Called by `engine/begin.py`; needs no torch.
"""

import contextlib
import ctypes
import sys
import threading

from quire.platforms.host import look

CUDA = "libcuda.so.1"


def wake(device: str) -> threading.Thread | None:
    """Begin NVIDIA's driver, where there is one. It takes no memory of any device.

    Args:
        device: as the user named it.

    Returns: what begins it; None where nothing of NVIDIA's will run, or torch is there already and may have begun it.
    """
    if "torch" in sys.modules or device.strip().lower().startswith(("cpu", "rocm", "xpu")):
        return None
    host = look()
    if host.gpus_hidden or "NVIDIA" not in host.gpu_vendors:
        return None
    thread = threading.Thread(target=_begin, name="quire-driver", daemon=True)
    thread.start()
    return thread


def _begin() -> None:
    with contextlib.suppress(OSError):  # torch tells the user what is wrong with a driver
        ctypes.CDLL(CUDA).cuInit(0)
