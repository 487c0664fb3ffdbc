"""What surrounds the model in a decode step: its inputs, the choice of a token, and the rows' new tokens."""

from quire.kernels.triton.step import draw, greedy, inputs, rows

__all__ = ["draw", "greedy", "inputs", "rows"]
