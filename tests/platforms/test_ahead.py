"""Memory that is cleared before weights take it."""

import ctypes
import errno
import mmap
import sys
from pathlib import Path
from unittest import mock

import pytest

from quire.platforms import ahead as module
from quire.platforms import cores
from quire.platforms.ahead import HUGE_PAGE, PIECE, Ahead, pays
from quire.platforms.host import Host
from tests.marks import needs_native
from tests.waiting import wait_for

pytestmark = [pytest.mark.plain, needs_native]

AVX2 = frozenset({"avx2"})


def address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc how much memory this process has")
def test_memory_is_there_before_it_is_taken_and_goes_back_where_nobody_took_it() -> None:
    store, size, before = Ahead(), 8 * PIECE, resident_bytes()
    with store.clearing(size):
        wait_for(lambda: resident_bytes() >= before + size // 2)
    kept = store.take(PIECE)
    kept[:4] = b"kept"
    store.drop()
    assert resident_bytes() - before < size // 2
    assert bytes(kept[:4]) == b"kept"
    assert bytes(kept[4:]).strip(b"\0") == b""


def test_what_is_taken_is_zero_begins_a_page_and_is_nobody_elses() -> None:
    store = Ahead()
    with store.clearing(4 * HUGE_PAGE):
        pass
    sizes = [HUGE_PAGE + 1, 100, 3 * HUGE_PAGE, HUGE_PAGE]
    taken = [store.take(size) for size in sizes]
    for number, (view, size) in enumerate(zip(taken, sizes, strict=True)):
        assert len(view) == size
        assert bytes(view).strip(b"\0") == b""
        assert address(view) % mmap.PAGESIZE == 0
        view[:] = bytes([number + 1]) * size
    assert all(set(view) == {number + 1} for number, view in enumerate(taken))


def test_nothing_is_cleared_where_nothing_is_wanted() -> None:
    store = Ahead()
    with store.clearing(0):
        assert store._pages is None
        assert len(store.take(HUGE_PAGE)) == HUGE_PAGE
    store.drop()


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc how much memory this process has")
def test_a_block_that_fails_leaves_nothing_behind() -> None:
    store, size, before = Ahead(), 8 * PIECE, resident_bytes()
    with pytest.raises(InterruptedError), store.clearing(size):
        wait_for(lambda: resident_bytes() >= before + size // 2)
        raise InterruptedError
    assert resident_bytes() - before < size // 2
    assert store._pages is None


def test_nothing_is_cleared_where_the_system_grants_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Ahead()
    with store.clearing(HUGE_PAGE):
        pass
    with monkeypatch.context() as patch:
        patch.setattr(mmap, "mmap", mock.Mock(side_effect=OSError(errno.ENOMEM, "no memory")))
        with store.clearing(PIECE):
            assert store._pages is None
    assert len(store.take(HUGE_PAGE)) == HUGE_PAGE


@pytest.mark.parametrize(
    ("device", "kernels", "host", "nodes", "expected"),
    [
        ("auto", "auto", Host(has_native=True, cpu_flags=AVX2), [[0, 1]], True),
        ("cpu", "cpu", Host(has_native=True, cpu_flags=AVX2, gpu_vendors=("NVIDIA",)), [[0, 1]], True),
        ("auto", "auto", Host(has_native=True, cpu_flags=AVX2, gpu_vendors=("NVIDIA",)), [[0, 1]], False),
        ("cuda", "auto", Host(has_native=True, cpu_flags=AVX2), [[0, 1]], False),
        ("cpu", "torch_native", Host(has_native=True, cpu_flags=AVX2), [[0, 1]], False),
        ("cpu", "auto", Host(cpu_flags=AVX2), [[0, 1]], False),
        ("cpu", "auto", Host(has_native=True), [[0, 1]], False),
        ("cpu", "auto", Host(has_native=True, cpu_flags=AVX2), [[0]], False),
        ("cpu", "auto", Host(has_native=True, cpu_flags=AVX2), [[0, 1], [2, 3]], False),
    ],
)
def test_it_pays_where_a_core_idles_and_weights_are_packed_here(
    device: str, kernels: str, host: Host, nodes: list[list[int]], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(module, "look", lambda: host)
    monkeypatch.setattr(cores, "physical", lambda: nodes)
    assert pays(device, kernels) is expected
    monkeypatch.setitem(sys.modules, "torch", None)
    assert not pays(device, kernels)
