"""Layers with recurrent state: their convolution, the gated delta rule, Mamba's scan, norms with gates.

Steps of one token a sequence read and write each state once. Longer ones go by chunks of tokens: what needs no state is
worked out for all chunks at once, then states from chunk to chunk, then results for all chunks at once.
"""

from quire.kernels.triton.recurrent import conv, delta, norm, scan

__all__ = ["conv", "delta", "norm", "scan"]
