"""Kernels made of torch's own fused operators: for CPUs, and for any device that nothing better runs on."""

from quire.kernels.torch_native import activation, attention, draw, latent, moe, norm, ragged, recurrent

__all__ = ["activation", "attention", "draw", "latent", "moe", "norm", "ragged", "recurrent"]
