"""Cutting the sequences of a step into chunks of tokens, on the device; what kernels that go by chunks share."""

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.triton.launch import INTERPRETED, device_of, next_power_of_2
from quire.ops.recurrent import state_slots
from quire.ops.step import StepInputs

CHUNK = 32 if INTERPRETED else 64
"""Tokens. The interpreter takes its time for every turn of a loop."""
WIDEN = tl.constexpr(INTERPRETED)
"""The interpreter multiplies no bfloat16 matrices."""
EXACT = tl.constexpr("ieee" if torch.version.cuda is None else "tf32x3")
"""How float32 matrices are multiplied: on NVIDIA's GPUs by three products of parts, which loses next to nothing."""


@dataclass(frozen=True, slots=True)
class Chunks:
    """The chunks of all sequences, one after another; there may be fewer than there is room for.

    Attributes:
        owner: (room,) int32, the sequence of each chunk; as many as sequences where there is no chunk.
        first: (sequences,) int32, each one's first chunk.
        counts: (sequences,) int32, how many it has.
        slots: (3, sequences) int32: pages to begin with, pages to end with, whether there is nothing to begin with.
    """

    owner: Tensor
    first: Tensor
    counts: Tensor
    slots: Tensor

    @property
    def room(self) -> int:
        """How many chunks there can be."""
        return len(self.owner)


def chunks_of(step: StepInputs, group: int) -> Chunks:
    """The chunks of `step`; worked out once."""

    def make() -> Chunks:
        tokens = step.query_start[1:] - step.query_start[:-1]
        counts = (tokens + (CHUNK - 1)) // CHUNK
        ends = counts.cumsum(0)
        # Every sequence wastes less than one chunk.
        room = len(step.token_ids) // CHUNK + min(len(tokens), len(step.token_ids))
        owner = torch.searchsorted(ends, torch.arange(room, device=ends.device), right=True, out_int32=True)
        return Chunks(owner, (ends - counts).int(), counts.int(), slots_of(step, group))

    return step.once(("chunks", group), make)


def slots_of(step: StepInputs, group: int) -> Tensor:
    """`state_slots` as one tensor, (3, sequences) int32: begin, end, fresh."""

    def make() -> Tensor:
        slots = state_slots(step, group)
        return torch.stack([slots.begin, slots.end, slots.fresh.long()]).int()

    return step.once(("slots", group), make)


def block_of(size: int) -> int:
    """Values of a tile that holds `size` of them and can be multiplied as a matrix."""
    return max(16, next_power_of_2(size))


def beside(step: StepInputs) -> int:
    """How many sequences a step walks through side by side: as many as it would have of its longest."""
    return max(1, len(step.token_ids) // max(1, step.max_query))


@cache
def stages_for(turn_bytes: int, most: int, device: torch.device) -> int:
    """How deep a loop that loads so many bytes a turn is pipelined, so that it fits in shared memory."""
    if INTERPRETED or device.type != "cuda":
        return most
    return max(1, min(most, device_of(device).shared_bytes // turn_bytes - 1))


@triton.jit
def pages_of(slots, i, sequences):
    """Of a sequence: its page to begin with, that to end with, and whether the first holds anything."""
    begin, end = tl.load(slots + i).to(tl.int64), tl.load(slots + sequences + i).to(tl.int64)
    return begin, end, tl.load(slots + 2 * sequences + i) == 0


@triton.jit
def tokens_of(chunk, sequence, first, starts, CHUNK: tl.constexpr):
    """Where the tokens of a sequence's chunk are in the step, and which of them there are."""
    t = tl.load(starts + sequence) + (chunk - tl.load(first + sequence)) * CHUNK + tl.arange(0, CHUNK)
    return t.to(tl.int64), t < tl.load(starts + sequence + 1)


@triton.jit
def softplus(x):
    """log(1 + exp(x)), which is x where that is large."""
    return tl.where(x > 20.0, x, tl.log(1.0 + tl.exp(tl.minimum(x, 20.0))))


@triton.jit
def left_of(total, CHUNK: tl.constexpr):
    """What is left at a chunk's token (rows) of an earlier one or itself (columns); 0 for later ones."""
    at = tl.arange(0, CHUNK)
    reach = total[:, None] - total[None, :]
    return tl.where(at[:, None] >= at[None, :], tl.exp(tl.minimum(reach, 0.0)), 0.0)


@triton.jit
def product(a, b):
    """a @ b in float32; of float32 without rounding."""
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=EXACT)
