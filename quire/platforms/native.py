"""The library of compiled CPU kernels (`native/`): where it is, its instructions and its threads.

It is plain C behind ctypes and knows neither Python nor torch. Called by `host`, which asks whether it was built, by
`quire doctor`, by `kernels/cpu`, which calls it, and by the runner, which says how many threads compute.
"""

import ctypes
from functools import cache
from pathlib import Path

from quire.base.errors import PlatformError
from quire.config import environ
from quire.platforms import cores

PATH = Path(__file__).parents[1] / "kernels" / "cpu" / "libquire_cpu.so"
ABI = 9
"""Raised with every change of a signature, there and here."""
NUMBERS = {"float32": 0, "bfloat16": 1}
"""The dtypes of its tensors."""
REMEDY = "reinstall quire, or run with --kernels torch_native"


def is_built() -> bool:
    """Whether this installation has the library."""
    return PATH.exists()


@cache
def load() -> tuple[ctypes.CDLL, str]:
    """The library, and the instructions that it uses: avx2, avx512, avx512_bf16, amx or neon.

    The best that there are, unless QUIRE_CPU_ISA names others or ATEN_CPU_CAPABILITY holds torch to AVX2. It computes
    with one thread until `set_threads` says otherwise.

    Raises PlatformError if it cannot be loaded, is not of this version, or lacks what was asked for.
    """
    try:
        library = ctypes.CDLL(str(PATH))
    except OSError as error:
        raise PlatformError(f"the CPU kernels cannot be loaded ({error}); {REMEDY}") from error
    try:
        abi = library.qcpu_abi()
    except AttributeError:
        abi = None
    if abi != ABI:
        raise PlatformError(f"the CPU kernels at {PATH} are of another version of quire; {REMEDY}")
    library.qcpu_set_isa.restype = ctypes.c_char_p
    library.qcpu_set_isa.argtypes = [ctypes.c_char_p]
    library.qcpu_bind_thread.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.c_int]
    library.qcpu_use_huge_pages.argtypes = [ctypes.c_void_p, ctypes.c_long]
    held = "avx2" if environ.read("ATEN_CPU_CAPABILITY") in ("avx2", "default") else None
    return library, start(library, environ.read("QUIRE_CPU_ISA") or held)


def start(library: ctypes.CDLL, wanted: str | None) -> str:
    """Let the library use the instructions called `wanted`, or with None the best; returns their name.

    Raises PlatformError if this processor lacks them.
    """
    chosen: bytes | None = library.qcpu_set_isa(wanted.encode() if wanted else None)
    if chosen is None:
        asked = f"QUIRE_CPU_ISA={wanted} cannot be used" if wanted else "the CPU kernels cannot run"
        remedy = "leave it unset, so that the best are chosen" if wanted else REMEDY
        raise PlatformError(f"{asked}: this processor, or the library, lacks the instructions; {remedy}")
    return chosen.decode()


def number(dtype: object) -> int | None:
    """The library's number of a dtype, by its name or as torch has it; None where there is none."""
    return NUMBERS.get(str(dtype).removeprefix("torch."))


def use_huge_pages(address: int, size: int) -> None:
    """Ask the system to back memory that nobody has touched by huge pages."""
    load()[0].qcpu_use_huge_pages(address, size)


def set_threads(count: int) -> int:
    """Let the library compute with `count` threads, the calling one included; returns how many it will be.

    The others stay off the second threads of cores, each on its own NUMA node, as long as there is a core for each.
    """
    library, _ = load()
    given: int = library.qcpu_set_threads(count)
    nodes = cores.physical()
    places = [node for node in nodes for _ in node]
    if 1 < given <= len(places):
        for thread in range(1, given):
            node = places[thread]
            library.qcpu_bind_thread(thread, (ctypes.c_int * len(node))(*node), len(node))
    return given
