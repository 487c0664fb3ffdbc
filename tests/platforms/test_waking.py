"""A driver is begun beside the import of torch, by whoever may need it."""

import ctypes
import sys
from dataclasses import replace

import pytest

from quire.platforms import waking
from quire.platforms.host import look
from quire.platforms.waking import wake

HOST = replace(look(), gpu_vendors=("Intel", "NVIDIA"), gpus_hidden=False)


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
    monkeypatch.setattr(waking, "look", lambda: HOST)
    return calls


@pytest.mark.parametrize("device", ["auto", "cuda", " CUDA:1", "0"])
def test_it_begins(begun, device):
    wake(device).join()
    assert begun == ["libcuda.so.1", 0]


@pytest.mark.parametrize("device", ["cpu", " CPU ", "rocm:0", "xpu"])
def test_not_for_what_is_not_nvidia_s(begun, device):
    assert wake(device) is None
    assert not begun


@pytest.mark.parametrize("host", [replace(HOST, gpus_hidden=True), replace(HOST, gpu_vendors=("AMD",))])
def test_not_on_a_machine_without_it_or_where_it_is_hidden(begun, monkeypatch, host):
    monkeypatch.setattr(waking, "look", lambda: host)
    assert wake("auto") is None
    assert not begun


def test_not_where_torch_is_there(begun, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", object())
    assert wake("auto") is None
    assert not begun


def test_a_library_that_is_missing_is_torch_s_to_speak_of(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(waking, "look", lambda: HOST)
    monkeypatch.setattr(waking, "CUDA", "libquire-has-no-such-driver.so")
    wake("auto").join()
    assert not capsys.readouterr().err
