"""Kernels in Triton: for NVIDIA, AMD and Intel GPUs, and for CPUs under Triton's interpreter, which tests them."""

from quire.kernels.triton import ahead, attention, dense, moe, recurrent, step
from quire.kernels.triton.launch import launch_by_ourselves

__all__ = ["ahead", "attention", "dense", "moe", "recurrent", "step"]

launch_by_ourselves()
