"""Kernels for weights of 4 and 8 bits with scales, in the one order that they read: see `quire.quantization.words`."""

from quire.kernels.triton.dense.quantized import linear

__all__ = ["linear"]
