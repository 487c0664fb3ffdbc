"""Mixture of experts: which experts a token goes to, and what they make of it.

`route` is the choice alone; `moe` is the whole block behind the router's product: choice, dispatch, gated feed-forward
of each expert, weighted sum. Layers ask for `moe`, so that a provider may fuse as much of it as it likes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.ops.activation import GateSpec, gated_activation
from quire.ops.registry import op
from quire.ops.samples import FLOATS, normal


@dataclass(frozen=True, slots=True)
class RouteSpec:
    """Each token goes to `top_k` of `experts`; `normalize` makes the weights of the chosen ones sum to 1."""

    experts: int
    top_k: int
    normalize: bool
    dtype: str = "float32"
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class MoeSpec:
    """Experts of `inner` values (this rank's share) between `hidden` values, gated by SiLU."""

    route: RouteSpec
    hidden: int
    inner: int
    dtype: str = "float32"
    device: str = "cpu"


def _route_samples() -> Iterator[tuple[RouteSpec, dict[str, Any]]]:
    for dtype in FLOATS:
        for tokens, experts, top_k in ((1, 8, 2), (5, 6, 1), (70, 128, 8), (150, 4, 4), (0, 8, 2)):
            for normalize in (False, True):
                # In bfloat16 many of 128 logits are equal: the order of equals is part of the definition.
                spec = RouteSpec(experts, top_k, normalize, dtype)
                yield spec, {"logits": normal(dtype, tokens, experts), "spec": spec}


def _moe_samples() -> Iterator[tuple[MoeSpec, dict[str, Any]]]:
    sizes = ((1, 8, 2, 64, 32), (3, 8, 3, 48, 24), (9, 6, 2, 80, 40), (150, 4, 2, 64, 32), (0, 4, 2, 16, 8))
    for dtype in FLOATS:
        for i, (tokens, experts, top_k, hidden, inner) in enumerate(sizes):
            spec = MoeSpec(RouteSpec(experts, top_k, i % 2 == 0, dtype), hidden, inner, dtype)
            yield (
                spec,
                {
                    "x": normal(dtype, tokens, hidden),
                    "logits": normal(dtype, tokens, experts, seed=1),
                    "gate_up": normal(dtype, experts, 2 * inner, hidden, seed=2) * hidden**-0.5,
                    "down": normal(dtype, experts, hidden, inner, seed=3) * inner**-0.5,
                    "spec": spec,
                },
            )


@op(samples=_route_samples)
def route(logits: Tensor, spec: RouteSpec) -> tuple[Tensor, Tensor]:
    """The `top_k` experts of each token, best first, and their softmax weights; of equals the lower number comes first.

    Args:
        logits: (tokens, experts), any float dtype.

    Returns: weights (tokens, top_k) float32 and expert numbers (tokens, top_k) int32.
    """
    wide = logits.float()
    ids = torch.sort(wide, dim=-1, descending=True, stable=True).indices[:, : spec.top_k]
    weights = torch.gather(wide.softmax(-1), 1, ids)
    if spec.normalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights, ids.int()


# Providers keep gate and up in float32 where the reference rounds them.
@op(samples=_moe_samples, tolerance={"float32": (1e-5, 1e-5), "bfloat16": (2e-2, 3e-2), "float16": (4e-3, 4e-3)})
def moe(x: Tensor, logits: Tensor, gate_up: Tensor, down: Tensor, spec: MoeSpec) -> Tensor:
    """The weighted sum of what each token's experts make of it.

    Args:
        x: (tokens, hidden).
        logits: (tokens, experts), what `route` chooses by.
        gate_up: (experts, 2 * inner, hidden), the gate's rows first.
        down: (experts, hidden, inner).

    Returns: (tokens, hidden) in the dtype of `x`, summed in float32: a rank's share where `inner` is one. Every expert
    computes every token here, which needs no word from the device; providers compute the chosen ones alone.
    Shazeer et al., "Outrageously Large Neural Networks", 2017.
    """
    weights, ids = route(logits, spec.route)
    gate = GateSpec(spec.inner, "silu", spec.dtype, spec.device)
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in range(spec.route.experts):
        chosen = ids == expert
        made = F.linear(gated_activation(F.linear(x, gate_up[expert]), gate), down[expert])
        # `where`, not a product with 0: what an expert makes of a token that is not its own may be infinite.
        share = made.float() * (weights * chosen).sum(-1, keepdim=True)
        out += torch.where(chosen.any(-1, keepdim=True), share, 0.0)
    return out.to(x.dtype)
