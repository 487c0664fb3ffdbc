"""Kernels compiled from `native/` for x86-64 processors, called through ctypes."""

from quire.kernels.cpu import linear

__all__ = ["linear"]
