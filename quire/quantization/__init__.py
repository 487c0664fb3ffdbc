"""Weights in fewer bits: types, the forms that kernels read, what quantizes, and a file per format of checkpoints."""
