"""Attention: what happens to heads before it, one token per sequence, and everything else."""

from quire.kernels.triton.attention import decode, heads, prefill

__all__ = ["decode", "heads", "prefill"]
