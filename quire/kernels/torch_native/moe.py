"""Experts on their own tokens alone: sorted entries, one product per expert on CPUs, grouped products on Hopper."""

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.ops.moe import MoeBiases, MoeSpec, gated, moe, route
from quire.ops.registry import provide

ALIGNED_ITEMS = 8
"""Rows of grouped products begin at multiples of 16 bytes."""


def _refuses(spec: MoeSpec) -> str | None:
    device = torch.device(spec.device)
    if device.type == "cpu":
        return None
    if device.type != "cuda" or torch.version.hip is not None or torch.cuda.get_device_capability(device) < (9, 0):
        return "grouped products need an NVIDIA GPU of compute capability 9.0"
    if spec.dtype != "bfloat16":
        return f"grouped products are in bfloat16, not {spec.dtype}"
    if spec.hidden % ALIGNED_ITEMS or spec.inner % ALIGNED_ITEMS:
        return f"hidden={spec.hidden} and inner={spec.inner} are no multiples of {ALIGNED_ITEMS}"
    return None


@provide("torch_native", moe, _refuses)
def native_moe(
    x: Tensor, logits: Tensor, gate_up: Tensor, down: Tensor, spec: MoeSpec, biases: MoeBiases | None = None
) -> Tensor:
    """See `moe`."""
    biases = biases or MoeBiases()
    weights, ids = route.reference(logits, spec.route, biases.choice)
    experts, order = ids.flatten().sort(stable=True)
    token = order // spec.route.top_k
    share = weights.flatten()[order, None]
    read = x[token]
    if spec.weigh_input:
        read, share = (read * share).to(x.dtype), torch.ones_like(share)
    if x.device.type == "cpu":
        made = _one_by_one(read, experts, (gate_up, down), biases, spec)
    else:
        made = _grouped(read, experts, (gate_up, down), biases, spec)
    # Back in the order of tokens and slots, so that a sum does not depend on other tokens.
    made = made.float() * share
    spread = torch.empty_like(made).index_copy_(0, order, made)
    return spread.view(len(x), spec.route.top_k, spec.hidden).sum(1).to(x.dtype)


def _grouped(
    read: Tensor, experts: Tensor, matrices: tuple[Tensor, Tensor], biases: MoeBiases, spec: MoeSpec
) -> Tensor:
    """What `experts`, in rising order, make of the rows of `read`: (rows, hidden)."""
    gate_up, down = matrices
    numbers = torch.arange(1, spec.route.experts + 1, dtype=torch.int32, device=read.device)
    ends = torch.searchsorted(experts, numbers, out_int32=True)
    first = torch._grouped_mm(read, gate_up.transpose(1, 2), ends)
    if biases.gate_up is not None:
        first = first + biases.gate_up[experts]
    made: Tensor = torch._grouped_mm(_gated(first, spec), down.transpose(1, 2), ends)
    return made if biases.down is None else made + biases.down[experts]


def _one_by_one(
    read: Tensor, experts: Tensor, matrices: tuple[Tensor, Tensor], biases: MoeBiases, spec: MoeSpec
) -> Tensor:
    gate_up, down = matrices
    made = torch.empty(len(read), spec.hidden, dtype=read.dtype)
    begin = 0
    for expert, count in enumerate(torch.bincount(experts, minlength=len(gate_up)).tolist()):
        if count:
            mine = slice(begin, begin + count)
            first, second = (None if b is None else b[expert] for b in (biases.gate_up, biases.down))
            inner = _gated(F.linear(read[mine], gate_up[expert], first), spec)
            made[mine] = F.linear(inner, down[expert], second)
            begin += count
    return made


def _gated(gate_up: Tensor, spec: MoeSpec) -> Tensor:
    if spec.gate != "silu":
        return gated(gate_up, spec)
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up
