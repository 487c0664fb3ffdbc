"""What surrounds the model in a decode step: its inputs, the most probable token, and the rows' new tokens."""

from quire.kernels.triton.step import greedy, inputs, rows

__all__ = ["greedy", "inputs", "rows"]
