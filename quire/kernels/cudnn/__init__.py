"""Attention by cuDNN, through NVIDIA's nvidia-cudnn-frontend where it is installed: the fastest for long prompts."""

from quire.kernels.cudnn import attention

__all__ = ["attention"]
