"""What belongs to whole rows of a weight: applied to their sums, by whatever kernel made them."""

import triton
import triton.language as tl

from quire.kernels.triton.dense.quantized.decode import scale


@triton.jit
def of_rows(
    scales, factors, n, SCALE: tl.constexpr, GROUP: tl.constexpr, FACTOR: tl.constexpr, ROW_BLOCK: tl.constexpr,
):  # fmt: skip
    """What sums of rows `n`, all there, are multiplied with: their scale where they have one, and their factor."""
    result = tl.full(n.shape, 1.0, tl.float32)
    if GROUP == 0:
        result *= scale(tl.load(scales + n // ROW_BLOCK), SCALE)
    if FACTOR == "multiply":
        result *= tl.load(factors + n)
    elif FACTOR == "divide":
        result /= tl.load(factors + n)
    return result
