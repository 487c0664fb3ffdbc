"""Ends of processes: one that was started by quire ends with whoever started it, also where it cannot look up."""

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(by: signal.Signals = signal.SIGKILL) -> None:
    """Let the kernel send this process a signal when the thread that started it ends; nothing where it cannot.

    Processes also read the end of a pipe or socket; this is for those that hang, or are stopped, and read nothing. See
    prctl(2), PR_SET_PDEATHSIG.

    Args:
        by: what is sent; SIGCONT lets one that was stopped read the end, and put away what it must.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, by)
