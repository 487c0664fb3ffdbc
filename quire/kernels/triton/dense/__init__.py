"""Dense kernels: norms, gates and products, launched so that each starts while the one before it ends."""

from quire.kernels.triton.dense import activation, linear, norm, quantized

__all__ = ["activation", "linear", "norm", "quantized"]
