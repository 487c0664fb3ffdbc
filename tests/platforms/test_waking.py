"""A driver is begun beside the import of torch, by whoever may need it."""

import ctypes
import sys

import pytest

from quire.platforms import waking
from quire.platforms.waking import wake


@pytest.fixture
def begun(monkeypatch):
    """What was called of which library, in a process that has not imported torch."""
    calls = []

    class Library:
        def __init__(self, name):
            calls.append(name)

        def cuInit(self, flags):  # noqa: N802
            calls.append(flags)

    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(ctypes, "CDLL", Library)
    return calls


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:1", "0"])
def test_it_begins(begun, device):
    wake(device).join()
    assert begun == ["libcuda.so.1", 0]


def test_not_for_a_cpu_nor_where_torch_is_there(begun, monkeypatch):
    assert wake("cpu") is None
    monkeypatch.setitem(sys.modules, "torch", object())
    assert wake("auto") is None
    assert not begun


def test_a_machine_without_it_goes_on(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(waking, "CUDA", "libquire-has-no-such-driver.so")
    wake("auto").join()
    assert not capsys.readouterr().err
