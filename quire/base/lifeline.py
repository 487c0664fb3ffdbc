"""Ends of processes: one that was started by quire ends with whoever started it, also where it cannot look up."""

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Let the kernel kill this process when the thread that started it ends. Does nothing where there is no such call.

    Processes also read the end of a pipe or socket; this is for those that hang, or are stopped, and read nothing. See
    prctl(2), PR_SET_PDEATHSIG.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
