"""Weights in fewer bits: how values are quantized, and the one form that they have before a kernel packs them."""
