"""Launching Triton's kernels without a C compiler: what Triton builds of C for each kernel is done here through ctypes.

Triton makes machine code by itself, and has a C compiler make the code on the host that hands a kernel its arguments.
Where there is none, this driver calls CUDA's own library, which takes some microseconds more a launch: nothing in
recorded steps. Called by Triton, which is told of it when these kernels are imported.
"""

import ctypes
import functools
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from triton.backends.driver import GPUDriver
from triton.backends.nvidia.driver import TMA_DTYPE_DEVICE_TO_HOST, CudaDriver
from triton.runtime import _allocation

from quire.base.errors import PlatformError

CODES = {
    "i1": "b", "i8": "b", "i16": "h", "i32": "i", "i64": "q", "u1": "B", "u8": "B", "u16": "H", "u32": "I", "u64": "Q",
    "fp16": "e", "fp32": "f", "f32": "f", "fp64": "d",
}  # fmt: skip
"""How `struct` calls Triton's types. Pointers are u64."""

MAP_BYTES, MAP_ALIGNMENT = 128, 64
"""Of the copy engine's description of a tensor."""

NOT_INTERLEAVED, LINES_OF_128, NAN_OUTSIDE = 0, 2, 1
"""What cuTensorMapEncodeTiled is told: values in order, the second cache's lines, NaN for what lies outside."""

WARP_SIZE = 32


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute; of its union only the first number is used."""

    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_char * 4), ("value", ctypes.c_int), ("rest", ctypes.c_char * 60))


class _Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    )


DEPENDENT, COOPERATIVE = 6, 2
"""Numbers of launch attributes: may start before its predecessor ends; all blocks run at once."""

SHARED_OPTIN, REGISTERS, PROCESSORS, WARP, CLOCK, MEMORY_CLOCK, BUS = 97, 12, 16, 10, 13, 36, 37
"""Numbers of device attributes."""
PROPERTIES = {
    "max_shared_mem": SHARED_OPTIN,
    "max_num_regs": REGISTERS,
    "multiprocessor_count": PROCESSORS,
    "warpSize": WARP,
    "sm_clock_rate": CLOCK,
    "mem_clock_rate": MEMORY_CLOCK,
    "mem_bus_width": BUS,
}
USED_REGISTERS, LOCAL_BYTES, MOST_THREADS, STATIC_SHARED, MOST_SHARED = 4, 3, 0, 1, 8
"""Numbers of function attributes."""
SHARED_WITHOUT_ASKING, SHARED_BEFORE_CACHE = 48 << 10, 1


@functools.cache
def library() -> ctypes.CDLL:
    """CUDA's driver library, which torch has loaded already."""
    return ctypes.CDLL("libcuda.so.1")


def call(name: str, *given: Any) -> None:
    """Call a function of the library. Raises RuntimeError."""
    status = getattr(library(), name)(*given)
    if status:
        said = ctypes.c_char_p()
        library().cuGetErrorString(status, ctypes.byref(said))
        raise RuntimeError(f"Triton Error [CUDA]: {(said.value or b'').decode()} ({name}: {status})")


class _Thread(threading.local):
    """What is known of the thread that asks."""

    has_context = False


THREAD = _Thread()


def ensure_context(device: int = 0) -> None:
    """Give this thread the context of `device` that all libraries share, unless it has one: new threads have none."""
    if THREAD.has_context:
        return
    context = ctypes.c_void_p()
    call("cuCtxGetCurrent", ctypes.byref(context))
    if context.value is None:
        call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        call("cuCtxSetCurrent", context)
    THREAD.has_context = True


class Utils:
    """What Triton asks of a driver beside launching."""

    def get_device_properties(self, device: int) -> dict[str, int]:
        """Numbers about a device, as Triton calls them."""
        return {name: _number("cuDeviceGetAttribute", key, device) for name, key in PROPERTIES.items()}

    def load_binary(self, name: str, code: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
        """Load machine code: handles of the module and of its function, registers, spilled words, most threads."""
        ensure_context(device)
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        call("cuModuleLoadData", ctypes.byref(module), code)
        call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
        used, local, most = (
            _number("cuFuncGetAttribute", key, function) for key in (USED_REGISTERS, LOCAL_BYTES, MOST_THREADS)
        )
        if shared > SHARED_WITHOUT_ASKING:
            static = _number("cuFuncGetAttribute", STATIC_SHARED, function)
            room = _number("cuDeviceGetAttribute", SHARED_OPTIN, device) - static
            call("cuFuncSetCacheConfig", function, SHARED_BEFORE_CACHE)
            call("cuFuncSetAttribute", function, MOST_SHARED, room)
        assert module.value is not None and function.value is not None, "the library has loaded it"
        return module.value, function.value, used, local // 4, most


def _number(name: str, key: int, of: object) -> int:
    found = ctypes.c_int()
    call(name, ctypes.byref(found), key, of)
    return found.value


class Launcher:
    """Launches one kernel.

    Args:
        src: its source: `signature` has the type of each argument.
        metadata: how it was compiled.
    """

    def __init__(self, src: Any, metadata: Any) -> None:
        if metadata.num_ctas != 1:
            raise PlatformError(f"kernel {metadata.name}: clusters of blocks can only be launched with a C compiler")
        self._metadata = metadata
        cuts = iter(metadata._asdict().get("tensordesc_meta") or ())
        self._readers = [_reader(kind, cuts) for kind in src.signature.values()]
        # Behind a kernel's own arguments come memory for all of its blocks, and a profiler's.
        codes = [code for reader in self._readers for code in reader.codes] + ["Q", "Q"]
        self._packer = struct.Struct("@" + "".join(codes))
        self._packed = ctypes.create_string_buffer(self._packer.size)
        ends = (struct.calcsize("@" + "".join(codes[: i + 1])) for i in range(len(codes)))
        starts = (end - struct.calcsize(code) for end, code in zip(ends, codes, strict=True))
        self._places = (ctypes.c_void_p * len(codes))(*(ctypes.addressof(self._packed) + start for start in starts))
        wanted = ((DEPENDENT, metadata.launch_pdl), (COOPERATIVE, metadata.launch_cooperative_grid))
        numbers = [number for number, asked in wanted if asked]
        self._attributes = (_Attribute * len(wanted))(*(_Attribute(id=number, value=1) for number in numbers))
        self._config = _Config(
            block=(WARP_SIZE * metadata.num_warps, 1, 1),
            shared_bytes=metadata.shared,
            attributes=self._attributes,
            count=len(numbers),
        )
        # What is packed is the kernel's own, and threads may launch it at once.
        self._lock = threading.Lock()

    def __call__(self, x: int, y: int, z: int, stream: int, function: int, *rest: Any) -> None:
        """Launch `function` on a grid of (x, y, z) blocks.

        The rest: how it was compiled, what Triton says of the launch, whom it tells so before and after, the arguments.
        """
        _, about, enter, leave, *given = rest
        if enter is not None:
            enter(about)
        if x * y * z > 0:
            ensure_context()
            values = [
                value for reader, argument in zip(self._readers, given, strict=True) for value in reader(argument)
            ]
            scratch = self._scratch(x * y * z, stream)
            with self._lock:
                self._packer.pack_into(self._packed, 0, *values, *map(_address, scratch))
                self._config.grid[:] = x, y, z
                self._config.stream = stream
                call("cuLaunchKernelEx", ctypes.byref(self._config), ctypes.c_void_p(function), self._places, None)
        if leave is not None:
            leave(about)

    def _scratch(self, blocks: int, stream: int) -> tuple[Any, Any]:
        """Memory for all blocks and for a profiler; None where the kernel wants none."""
        m = self._metadata
        wanted = (
            (m.global_scratch_size, m.global_scratch_align, _allocation._allocator),
            (m.profile_scratch_size, m.profile_scratch_align, _allocation._profile_allocator),
        )
        every, profile = (
            allocator.get()(blocks * size, align, stream) if size else None for size, align, allocator in wanted
        )
        return every, profile


@dataclass(frozen=True, slots=True)
class _Reader:
    """Makes of an argument what a kernel gets: values, and how `struct` calls their types."""

    codes: list[str]
    read: Callable[[Any], Sequence[object]]

    def __call__(self, argument: object) -> Sequence[object]:
        return self.read(argument)


def _reader(kind: Any, cuts: Iterator[dict[str, Any]]) -> _Reader:
    """What reads an argument of Triton's type `kind`; `cuts` say how the copy engine cuts the tensors to come."""
    if kind == "constexpr":
        return _Reader([], lambda argument: ())
    if isinstance(kind, tuple):
        inner = [_reader(one, cuts) for one in kind]
        codes = [code for reader in inner for code in reader.codes]
        return _Reader(codes, lambda given: [v for r, one in zip(inner, given, strict=True) for v in r(one)])
    if kind.startswith("tensordesc"):
        cut = next(cuts, None)
        if cut is None:
            raise PlatformError("kernels that take descriptions of tensors need a C compiler on this GPU")
        rank = len(cut["block_size"])
        codes = [f"{MAP_BYTES}s", *["i"] * rank, *["q"] * rank]
        return _Reader(codes, lambda tensor: [_map(tensor, cut), *tensor.shape, *tensor.strides])
    if kind.startswith("*"):
        return _Reader(["Q"], lambda argument: (_address(argument),))
    if kind not in CODES:
        raise PlatformError(f"kernels that take numbers of type {kind} need a C compiler")
    return _Reader([CODES[kind]], lambda argument: (argument,))


def _address(argument: Any) -> int:
    """A pointer: of a tensor, a number, or none. Raises ValueError for memory that GPUs do not see."""
    if argument is None or isinstance(argument, int):
        return argument or 0
    address: int = argument.data_ptr()
    if address and isinstance(argument, Tensor) and argument.device.type == "cpu" and not argument.is_pinned():
        raise ValueError("a kernel on a GPU is given a tensor in the CPU's memory; move it there, or pin its memory")
    return address


def _map(tensor: Any, cut: dict[str, Any]) -> bytes:
    """The copy engine's own description of a tensor."""
    rank = len(cut["block_size"])
    sizes = [int(size) for size in reversed(tensor.shape)]
    if cut["fp4_padded"]:
        sizes[0] *= 2
    steps = [int(step) * cut["elem_size"] for step in reversed(tensor.strides[:-1])]
    room = ctypes.create_string_buffer(MAP_BYTES + MAP_ALIGNMENT)
    skip = -ctypes.addressof(room) % MAP_ALIGNMENT
    call(
        "cuTensorMapEncodeTiled",
        ctypes.c_void_p(ctypes.addressof(room) + skip),
        TMA_DTYPE_DEVICE_TO_HOST[cut["elem_type"]],
        rank,
        ctypes.c_void_p(tensor.base.data_ptr()),
        (ctypes.c_uint64 * rank)(*sizes),
        (ctypes.c_uint64 * rank)(*steps),
        (ctypes.c_uint32 * rank)(*reversed(cut["block_size"])),
        (ctypes.c_uint32 * rank)(*[1] * rank),
        NOT_INTERLEAVED,
        cut["swizzle"],
        LINES_OF_128,
        NAN_OUTSIDE if tensor.padding == "nan" else 0,
    )
    return room.raw[skip : skip + MAP_BYTES]


class Driver(CudaDriver):  # type: ignore[misc]
    """Triton's driver for NVIDIA's GPUs, without the parts that are compiled."""

    def __init__(self) -> None:
        # Not CudaDriver's own, which compiles.
        GPUDriver.__init__(self)
        self.utils = Utils()
        self.launcher_cls = Launcher
