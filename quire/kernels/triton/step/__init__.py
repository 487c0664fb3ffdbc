"""What surrounds the model in a decode step: its inputs, the choice of a token, and the rows' new tokens."""

from quire.kernels.triton.step import draw, edit, greedy, inputs, logprobs, rows

__all__ = ["draw", "edit", "greedy", "inputs", "logprobs", "rows"]
