"""Attention: what happens to heads before it, one token per sequence, and everything else; latents; encoders."""

from quire.kernels.triton.attention import decode, heads, latent, prefill, ragged

__all__ = ["decode", "heads", "latent", "prefill", "ragged"]
