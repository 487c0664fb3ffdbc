"""The library of compiled CPU kernels (`native/`): where it is, and loading it with the best instructions for this CPU.

It is plain C behind ctypes and knows neither Python nor torch. Load it after torch, so that both use one pool of OpenMP
threads. Called by `host`, which asks whether it was built, by `quire doctor`, and by `kernels/cpu`, which calls it.
"""

import ctypes
from functools import cache
from pathlib import Path

from quire.base.errors import PlatformError
from quire.config import environ

PATH = Path(__file__).parents[1] / "kernels" / "cpu" / "libquire_cpu.so"
ABI = 1
"""Raised with every change of a signature, there and here."""
REMEDY = "reinstall quire, or run with --kernels torch_native"


def is_built() -> bool:
    """Whether this installation has the library."""
    return PATH.exists()


@cache
def load() -> tuple[ctypes.CDLL, str]:
    """The library, and the instructions that it uses: avx2, avx512 or avx512_bf16.

    The best that there are, unless QUIRE_CPU_ISA names others or ATEN_CPU_CAPABILITY holds torch to AVX2.

    Raises PlatformError if it cannot be loaded, is not of this version, or lacks what was asked for.
    """
    try:
        library = ctypes.CDLL(str(PATH))
    except OSError as error:
        raise PlatformError(f"the CPU kernels cannot be loaded ({error}); {REMEDY}") from error
    if library.quire_abi() != ABI:
        raise PlatformError(f"the CPU kernels at {PATH} are of another version of quire; {REMEDY}")
    held = "avx2" if environ.read("ATEN_CPU_CAPABILITY") in ("avx2", "default") else None
    return library, start(library, environ.read("QUIRE_CPU_ISA") or held)


def start(library: ctypes.CDLL, wanted: str | None) -> str:
    """Let the library use the instructions called `wanted`, or with None the best; returns their name.

    Raises PlatformError if this processor lacks them.
    """
    library.quire_start.restype = ctypes.c_char_p
    library.quire_start.argtypes = [ctypes.c_char_p]
    chosen: bytes | None = library.quire_start(wanted.encode() if wanted else None)
    if chosen is None:
        asked = f"QUIRE_CPU_ISA={wanted}: " if wanted else ""
        raise PlatformError(f"{asked}this processor or the CPU kernels lack these instructions; {REMEDY}")
    return chosen.decode()
