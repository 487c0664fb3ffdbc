"""Where no faster kernel gives the same bits in every batch: each token computed by itself, always in the same way."""

from quire.kernels.batch_invariant import attention, products, rows

__all__ = ["attention", "products", "rows"]
