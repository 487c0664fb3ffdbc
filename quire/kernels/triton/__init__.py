"""Kernels in Triton: for NVIDIA, AMD and Intel GPUs, and for CPUs under Triton's interpreter, which tests them."""

from quire.kernels.triton import attention, dense, moe, recurrent, step

__all__ = ["attention", "dense", "moe", "recurrent", "step"]
