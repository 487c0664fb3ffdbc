"""Kernels compiled from `native/`, called through ctypes."""

import torch

from quire.kernels.cpu import attention, draw, experts, groups, layer, linear, rows
from quire.platforms import native

# The engine's runner sets it again, once it knows how many threads the user wants.
native.set_threads(torch.get_num_threads())

__all__ = ["attention", "draw", "experts", "groups", "layer", "linear", "rows"]
