"""Mixture of experts in Triton: `few` tokens without a sort, more of them `grouped` by expert, quantized ones `stored`.

A row's result does not depend on how its batch mates are routed. Nothing here asks the device for a number: grids are
fixed by the number of tokens, and blocks beyond the last tile end at once, so all of it can be recorded in a graph.
"""

import torch
from torch import Tensor

from quire.kernels.triton.moe import stored
from quire.kernels.triton.moe.few import moe_few
from quire.kernels.triton.moe.grouped import moe_grouped, plan_for
from quire.kernels.triton.moe.route import refuses_route, refuses_sort, sort
from quire.ops.moe import MoeBiases, MoeSpec, moe
from quire.ops.registry import provide

__all__ = ["stored", "triton_moe"]

FEW_TOKENS = 4


def _refuses(spec: MoeSpec) -> str | None:
    if spec.gate != "silu" or spec.bias or spec.weigh_input:
        return "has no biases, no gate but SiLU's, and weighs what experts make"
    return refuses_sort(spec.route)


@provide("triton", moe, _refuses, batch_invariant=True)
def triton_moe(
    x: Tensor, logits: Tensor, gate_up: Tensor, down: Tensor, spec: MoeSpec, biases: MoeBiases | None = None
) -> Tensor:
    """See `moe`."""
    if not x.shape[0]:
        return torch.empty_like(x)
    x, logits = x.contiguous(), logits.contiguous()
    few = x.shape[0] <= FEW_TOKENS and not spec.route.batch_invariant
    if few and refuses_route(spec.route) is None:
        return moe_few(x, logits, gate_up, down, spec)
    plan = plan_for(x.shape[0], spec)
    order = sort(logits, spec.route, plan.tile, None if biases is None else biases.choice)
    return moe_grouped(x, order, gate_up, down, spec, plan)
