"""Freed memory goes back where the C library can be asked for it."""

import ctypes
from types import SimpleNamespace

import pytest

from quire.base.heap import give_back_freed

pytestmark = pytest.mark.plain


def test_the_c_library_is_asked(monkeypatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(malloc_trim=asked.append))
    give_back_freed()
    assert asked == [0]


def test_another_c_library_keeps_what_it_has(monkeypatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    give_back_freed()
