"""Kernels that are launched without a C compiler get each argument as their types say."""

import ctypes
import inspect
import struct
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch

from tests.ops.triton import said_by

driver = pytest.importorskip("quire.kernels.triton.driver")
pytestmark = pytest.mark.torch

Metadata = namedtuple(
    "Metadata",
    "name num_warps num_ctas shared launch_pdl launch_cooperative_grid global_scratch_size global_scratch_align "
    "profile_scratch_size profile_scratch_align tensordesc_meta",
)


def on_gpu(address):
    """A tensor there."""
    return SimpleNamespace(data_ptr=lambda: address)


def launcher(signature, **changed):
    plain = Metadata("kernel", 4, 1, 1000, True, False, 0, 1, 0, 1, None)
    return driver.Launcher(SimpleNamespace(signature=signature), plain._replace(**changed))


@pytest.fixture
def launched(monkeypatch):
    """What CUDA's library was asked to launch."""
    found = []

    def call(name, config, function, places, extra):
        found.append((name, config._obj, function.value, list(places)))

    monkeypatch.setattr(driver, "call", call)
    monkeypatch.setattr(driver, "THREAD", SimpleNamespace(has_context=True))
    return found


def test_what_the_library_is_handed_lies_as_its_header_says():
    assert (ctypes.sizeof(driver._Attribute), driver._Attribute.value.offset) == (72, 8)
    starts = [getattr(driver._Config, name).offset for name, _ in driver._Config._fields_]
    assert (ctypes.sizeof(driver._Config), starts) == (56, [0, 12, 24, 32, 40, 48])


def test_triton_calls_a_launcher_so():
    own = pytest.importorskip("triton.backends.nvidia.driver").CudaLauncher
    names = "self gridX gridY gridZ stream function kernel_metadata launch_metadata launch_enter_hook launch_exit_hook"
    found = list(inspect.signature(own.__call__).parameters)
    assert found[-1] == "args" and len(found) > 6
    assert names.split()[: len(found) - 1] == found[:-1]


def test_what_triton_says_of_a_compiled_kernel_makes_a_launcher():
    wanted, given, threads, shared = said_by("triton_launcher")
    assert wanted == given == [64, 8, 64, 32, 64, 64, 64]
    assert (threads, shared) == (64, 0)


@pytest.mark.parametrize("begun", [False, True])
def test_threads_without_a_context_get_one_once(monkeypatch, begun):
    asked = []

    def call(name, *given):
        asked.append((name, given[1]) if name == "cuDevicePrimaryCtxRetain" else name)
        if name.startswith("cuModule") or (begun and name == "cuCtxGetCurrent"):
            given[0]._obj.value = 5

    monkeypatch.setattr(driver, "call", call)
    monkeypatch.setattr(driver, "THREAD", thread := SimpleNamespace(has_context=False))
    kernel = launcher({"n": "i32"})
    for _ in range(2):
        kernel(1, 1, 1, 0, 1, None, None, None, None, 3)
    made = [] if begun else [("cuDevicePrimaryCtxRetain", 0), "cuCtxSetCurrent"]
    assert asked == ["cuCtxGetCurrent", *made, "cuLaunchKernelEx", "cuLaunchKernelEx"]
    asked.clear()
    thread.has_context = False
    driver.Utils().load_binary("kernel", b"code", 0, 1)
    made = [] if begun else [("cuDevicePrimaryCtxRetain", 1), "cuCtxSetCurrent"]
    assert asked[: len(made) + 2] == ["cuCtxGetCurrent", *made, "cuModuleLoadData"]


def test_arguments_lie_where_the_kernel_finds_them(launched):
    types = {
        "x": "*bf16", "N": "constexpr", "flag": "i1", "n": "i32", "stride": "i64", "scale": "fp32", "none": "*fp32",
        "pair": ("i32", "*i64"), "half": "fp16",
    }  # fmt: skip
    x = on_gpu(0x7F0000001230)
    kernel = launcher(types, launch_cooperative_grid=True)
    kernel(5, 2, 1, 77, 99, None, None, None, None, x, 64, True, -3, 1 << 40, 0.5, None, (7, x), 2.0)
    (name, config, function, places) = launched[0]
    assert (name, function, config.stream) == ("cuLaunchKernelEx", 99, 77)
    assert (list(config.grid), list(config.block), config.shared_bytes) == ([5, 2, 1], [128, 1, 1], 1000)
    assert [(a.id, a.value) for a in config.attributes[: config.count]] == [(6, 1), (2, 1)]
    codes = ["Q", "b", "i", "q", "f", "Q", "i", "Q", "e", "Q", "Q"]
    found = [(code, ctypes.string_at(at, struct.calcsize(code))) for code, at in zip(codes, places, strict=True)]
    values = [struct.unpack(code, found)[0] for code, found in found]
    assert values == [x.data_ptr(), 1, -3, 1 << 40, 0.5, 0, 7, x.data_ptr(), 2.0, 0, 0]
    assert all(at % struct.calcsize(code) == 0 for code, at in zip(codes, places, strict=True))


def test_empty_grids_are_not_launched_and_hooks_are_called(launched):
    heard = []
    launcher({"n": "i32"})(0, 1, 1, 0, 1, None, "about", heard.append, heard.append, 3)
    assert not launched and heard == ["about", "about"]


def test_memory_that_gpus_do_not_see_is_refused(launched):
    kernel = launcher({"x": "*fp32"})
    with pytest.raises(ValueError, match="CPU's memory"):
        kernel(1, 1, 1, 0, 1, None, None, None, None, torch.zeros(3))
    assert not launched
    kernel(1, 1, 1, 0, 1, None, None, None, None, torch.zeros(0))
    assert len(launched) == 1


def test_memory_for_all_blocks_is_asked_for(launched, monkeypatch):
    room = on_gpu(0x7F0000001230)
    asked = []

    def allocate(size, align, stream):
        asked.append((size, align, stream))
        return room

    monkeypatch.setattr(driver._allocation, "_allocator", SimpleNamespace(get=lambda: allocate))
    # It holds what it packs.
    kernel = launcher({"n": "i32"}, global_scratch_size=128, global_scratch_align=16)
    kernel(3, 2, 1, 9, 1, None, None, None, None, 4)
    assert asked == [(768, 16, 9)]
    assert ctypes.c_uint64.from_address(launched[0][3][1]).value == room.data_ptr()


def test_tensors_are_described_for_the_copy_engine(launched, monkeypatch):
    described = []

    def call(name, *given):
        if name == "cuTensorMapEncodeTiled":
            described.append(given)
            ctypes.memset(given[0].value, 7, driver.MAP_BYTES)
        else:
            launched.append(given)

    monkeypatch.setattr(driver, "call", call)
    cut = {"swizzle": 3, "elem_size": 2, "elem_type": 10, "block_size": [64, 32], "fp4_padded": False}
    base = torch.zeros(100, 48, dtype=torch.bfloat16)
    tensor = SimpleNamespace(base=base, shape=[100, 48], strides=[48, 1], padding="zero")
    kernel = launcher({"x": "tensordesc<bf16[64, 32]>", "n": "i32"}, tensordesc_meta=[cut])
    kernel(1, 1, 1, 0, 1, None, None, None, None, tensor, 5)
    at, kind, rank, address, sizes, steps, box, ones, *rest = described[0]
    assert at.value % driver.MAP_ALIGNMENT == 0
    assert (kind, rank, address.value) == (9, 2, base.data_ptr())
    assert (list(sizes), steps[0], list(box), list(ones)) == ([48, 100], 96, [32, 64], [1, 1])
    assert rest == [0, 3, 2, 0]
    places = launched[0][2]
    assert ctypes.string_at(places[0], driver.MAP_BYTES) == b"\7" * driver.MAP_BYTES
    numbers = [ctypes.c_int32.from_address(at).value for at in (places[1], places[2], places[5])]
    assert numbers == [100, 48, 5]
    assert [ctypes.c_int64.from_address(at).value for at in places[3:5]] == [48, 1]


def test_what_cannot_be_launched_is_refused_by_name():
    with pytest.raises(driver.PlatformError, match="clusters"):
        launcher({}, num_ctas=2)
    with pytest.raises(driver.PlatformError, match="descriptions of tensors"):
        launcher({"x": "tensordesc<bf16[64, 32]>"})
    with pytest.raises(driver.PlatformError, match="type bf16"):
        launcher({"x": "bf16"})
