"""Sampled tokens into the rows, in one kernel."""

import triton
import triton.language as tl
from torch import Tensor

from quire.ops.registry import provide
from quire.ops.rows import append_tokens


@triton.jit(do_not_specialize=["max_len"])
def _append(
    rows,  # (n,) int64
    drawn,  # (n,) int64
    tokens,  # (rows, max_len) int32
    known,  # (rows,) int32
    max_len,
):
    line = tl.program_id(0)
    row = tl.load(rows + line)
    count = tl.load(known + row)
    tl.store(tokens + row * max_len + count, tl.load(drawn + line).to(tl.int32))
    tl.store(known + row, count + 1)


@provide("triton", append_tokens, batch_invariant=True)
def triton_append_tokens(rows: Tensor, drawn: Tensor, tokens: Tensor, known: Tensor) -> None:
    """See `append_tokens`."""
    if len(rows):
        _append[(len(rows),)](rows, drawn, tokens, known, tokens.shape[1], num_warps=1)
