"""Experts on their own tokens alone: sorted entries, one product per expert on CPUs, grouped products on Hopper."""

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.ops.moe import MoeSpec, moe, route
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
def native_moe(x: Tensor, logits: Tensor, gate_up: Tensor, down: Tensor, spec: MoeSpec) -> Tensor:
    """See `moe`."""
    weights, ids = route.reference(logits, spec.route)
    experts, order = ids.flatten().sort(stable=True)
    token = order // spec.route.top_k
    share = weights.flatten()[order, None]
    if x.device.type == "cpu":
        return _one_by_one(x, experts, token, share, gate_up, down)
    numbers = torch.arange(1, spec.route.experts + 1, dtype=torch.int32, device=x.device)
    ends = torch.searchsorted(experts, numbers, out_int32=True)
    gate, up = torch._grouped_mm(x[token], gate_up.transpose(1, 2), ends).chunk(2, -1)
    made = torch._grouped_mm(F.silu(gate) * up, down.transpose(1, 2), ends) * share
    # Back in the order of tokens and slots, so that a sum does not depend on other tokens.
    spread = torch.empty_like(made).index_copy_(0, order, made)
    return spread.view(len(x), spec.route.top_k, spec.hidden).sum(1).to(x.dtype)


def _one_by_one(x: Tensor, experts: Tensor, token: Tensor, share: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    out = torch.zeros(x.shape, dtype=torch.float32)
    begin = 0
    for expert, count in enumerate(torch.bincount(experts, minlength=len(gate_up)).tolist()):
        if count:
            mine = slice(begin, begin + count)
            gate, up = F.linear(x[token[mine]], gate_up[expert]).chunk(2, -1)
            out.index_add_(0, token[mine], F.linear(F.silu(gate) * up, down[expert]).float() * share[mine])
            begin += count
    return out.to(x.dtype)
