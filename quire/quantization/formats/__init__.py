"""Formats of quantized checkpoints, one file each: the folder is the registry. Files never import each other.

A file has METHODS, MARKS and `make(config)`; see `quantization/checkpoint.py`.
"""
