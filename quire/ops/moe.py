"""Mixture of experts: which experts a token goes to, and what they make of it.

`route` is the choice alone; `moe` is the whole block behind the router's product: choice, dispatch, gated feed-forward
of each expert, weighted sum. Layers ask for `moe`, so that a provider may fuse as much of it as it likes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.ops.activation import GateSpec, gated_activation
from quire.ops.registry import op
from quire.ops.samples import FLOATS, normal

Gate = Literal["silu", "clamped", "relu2"]
"""What stands between an expert's products: silu(gate) * up, gpt-oss's form (see `gated`), or relu(up) ** 2 alone."""


@dataclass(frozen=True, slots=True)
class RouteSpec:
    """Each token goes to `top_k` of `experts`.

    Attributes:
        normalize: whether the weights of the chosen ones are made to sum to 1.
        score: what makes a logit a weight; a softmax is over all experts.
        bias: whether each expert has a bias that counts for the choice and not for the weight.
        groups: neighbouring experts form so many groups of equal size.
        top_groups: only experts of so many groups are chosen.
        group_best: a group counts as the sum of its so many best experts.
        scale: factor of the weights.
        batch_invariant: a token's experts, and what they make of it, must not depend on what else is computed in its
            step, to the last bit.
    """

    experts: int
    top_k: int
    normalize: bool
    dtype: str = "float32"
    device: str = "cpu"
    score: Literal["softmax", "sigmoid"] = "softmax"
    bias: bool = False
    groups: int = 1
    top_groups: int = 1
    group_best: int = 1
    scale: float = 1.0
    batch_invariant: bool = False

    @property
    def plain(self) -> bool:
        """Whether it is a softmax and nothing more."""
        return self.score == "softmax" and not self.bias and self.groups == 1 and self.scale == 1.0


@dataclass(frozen=True, slots=True)
class MoeSpec:
    """Experts of `inner` values (this rank's share) between `hidden` values.

    Attributes:
        gate: what stands between an expert's two products.
        bias: whether both products have biases.
        weigh_input: whether weights multiply what experts read instead of what they make.
    """

    route: RouteSpec
    hidden: int
    inner: int
    dtype: str = "float32"
    device: str = "cpu"
    gate: Gate = "silu"
    bias: bool = False
    weigh_input: bool = False

    @property
    def firsts(self) -> int:
        """Matrices of an expert's first product: gate and up, or up alone."""
        return 1 if self.gate == "relu2" else 2

    @property
    def plain(self) -> bool:
        """Whether experts are the common ones, chosen by a softmax: what every provider can do."""
        return self.route.plain and self.gate == "silu" and not self.bias and not self.weigh_input


@dataclass(frozen=True, slots=True)
class MoeBiases:
    """The vectors that a spec may ask for; None where it does not.

    Attributes:
        choice: (experts,) float32, of the choice.
        gate_up: (experts, firsts * inner), the gate's first.
        down: (experts, hidden); where ranks share the sum, only one has other values than 0.
    """

    choice: Tensor | None = None
    gate_up: Tensor | None = None
    down: Tensor | None = None


SIGMOID_EPS = 1e-20
"""Added to a sum of sigmoids, all of which may be 0."""
CLAMP, GAIN = 7.0, 1.702
"""Of gpt-oss: the bound of gate and up, and the gate's factor within the sigmoid."""


def _variants() -> Iterator[tuple[int, RouteSpec]]:
    """(tokens, spec) beyond the plain softmax."""
    for tokens in (1, 9, 150):
        best = RouteSpec(8, 3, True, score="sigmoid", groups=4, top_groups=2, group_best=2, scale=2.5)
        yield tokens, replace(best, bias=True)
        yield tokens, RouteSpec(8, 2, False, score="softmax", groups=4, top_groups=2, scale=16.0)
        yield tokens, RouteSpec(6, 1, False, score="sigmoid")


def _choice_bias(spec: RouteSpec) -> Tensor | None:
    return normal("float32", spec.experts, seed=9) if spec.bias else None


def _route_samples() -> Iterator[tuple[RouteSpec, dict[str, Any]]]:
    for dtype in FLOATS:
        for tokens, experts, top_k in ((1, 8, 2), (5, 6, 1), (70, 128, 8), (150, 4, 4), (0, 8, 2)):
            for normalize in (False, True):
                # In bfloat16 many of 128 logits are equal: the order of equals is part of the definition.
                spec = RouteSpec(experts, top_k, normalize, dtype)
                yield spec, {"logits": normal(dtype, tokens, experts), "spec": spec}
    for tokens, spec in _variants():
        yield spec, {"logits": normal("float32", tokens, spec.experts), "spec": spec, "bias": _choice_bias(spec)}


def _moe_samples() -> Iterator[tuple[MoeSpec, dict[str, Any]]]:
    sizes = ((1, 8, 2, 64, 32), (3, 8, 3, 48, 24), (9, 6, 2, 80, 40), (150, 4, 2, 64, 32), (0, 4, 2, 16, 8))
    for dtype in FLOATS:
        for i, (tokens, experts, top_k, hidden, inner) in enumerate(sizes):
            spec = MoeSpec(RouteSpec(experts, top_k, i % 2 == 0, dtype), hidden, inner, dtype)
            yield spec, _moe_inputs(spec, tokens)
    for tokens, route_spec in _variants():
        if tokens < 100 or route_spec.bias:  # many tokens are grouped alike, however they were routed
            yield (spec := MoeSpec(route_spec, 16, 8)), _moe_inputs(spec, tokens)
        yield (spec := MoeSpec(route_spec, 16, 8, weigh_input=True)), _moe_inputs(spec, tokens)
    for tokens in (1, 9):
        yield (spec := MoeSpec(RouteSpec(8, 3, True), 16, 8, gate="clamped", bias=True)), _moe_inputs(spec, tokens)
        yield (spec := MoeSpec(RouteSpec(8, 3, True), 16, 8, gate="relu2")), _moe_inputs(spec, tokens)


def _moe_inputs(spec: MoeSpec, tokens: int) -> dict[str, Any]:
    dtype, experts, hidden, inner = spec.dtype, spec.route.experts, spec.hidden, spec.inner
    inputs: dict[str, Any] = {
        "x": normal(dtype, tokens, hidden),
        "logits": normal(dtype, tokens, experts, seed=1),
        "gate_up": normal(dtype, experts, spec.firsts * inner, hidden, seed=2) * hidden**-0.5,
        "down": normal(dtype, experts, hidden, inner, seed=3) * inner**-0.5,
        "spec": spec,
    }
    return inputs if spec.plain else {**inputs, "biases": sample_biases(spec)}


def sample_biases(spec: MoeSpec) -> MoeBiases:
    """Biases for a sample of what is not plain."""
    dtype, experts = spec.dtype, spec.route.experts
    biases = normal(dtype, experts, spec.firsts * spec.inner, seed=4) * 6, normal(dtype, experts, spec.hidden, seed=5)
    return MoeBiases(_choice_bias(spec.route), *(biases if spec.bias else (None, None)))


@op(samples=_route_samples, batch_invariant=True)
def route(logits: Tensor, spec: RouteSpec, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The `top_k` experts of each token, best first, and their weights; of equals the lower number comes first.

    Args:
        logits: (tokens, experts), any float dtype.
        bias: (experts,) float32, if the spec has it.

    Returns: weights (tokens, top_k) float32 and expert numbers (tokens, top_k) int32. Groups and the bias are those of
    DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024, section 2.1.2.
    """
    wide = logits.float()
    scores = wide.softmax(-1) if spec.score == "softmax" else sigmoid(wide)
    # Logits tell apart what scores of equal or full weight do not.
    value = scores if spec.groups > 1 else wide
    if bias is not None:
        value = scores + bias
    if spec.groups > 1:
        value = value.masked_fill(~_open_groups(value, spec), float("-inf"))
    ids = torch.sort(value, dim=-1, descending=True, stable=True).indices[:, : spec.top_k]
    weights = torch.gather(scores, 1, ids)
    if spec.normalize:
        total = weights.sum(-1, keepdim=True)
        weights = weights / (total if spec.score == "softmax" else total + SIGMOID_EPS)
    return weights if spec.scale == 1.0 else weights * spec.scale, ids.int()


def _open_groups(value: Tensor, spec: RouteSpec) -> Tensor:
    """(tokens, experts) bool: whether an expert's group is one of the best."""
    grouped = value.view(len(value), spec.groups, spec.experts // spec.groups)
    worth = grouped.topk(spec.group_best, dim=-1).values.sum(-1)
    best = torch.sort(worth, dim=-1, descending=True, stable=True).indices[:, : spec.top_groups]
    chosen = torch.zeros_like(worth, dtype=torch.bool).scatter_(1, best, True)
    return chosen[:, :, None].expand_as(grouped).flatten(1)


def sigmoid(x: Tensor) -> Tensor:
    """The sigmoid of each value, which rounds the same way wherever in a tensor the value lies.

    On CPUs it is a softmax over two: there torch computes the ends of a tensor, and of each thread's share, by other
    instructions, which round otherwise; a softmax goes row by row.
    """
    if x.device.type != "cpu":
        return x.sigmoid()
    return torch.stack((x, torch.zeros_like(x)), -1).softmax(-1)[..., 0]


def gated(gate_up: Tensor, spec: MoeSpec) -> Tensor:
    """What goes into an expert's second product: (tokens, firsts * inner), the gate first, to (tokens, inner).

    Clamped: gate * sigmoid(1.702 * gate) * (up + 1) with gate below 7 and up between -7 and 7.
    """
    if spec.gate == "silu":
        out: Tensor = gated_activation(gate_up, GateSpec(spec.inner, "silu", spec.dtype, spec.device))
        return out
    if spec.gate == "relu2":
        return F.relu(gate_up).square()
    gate, up = torch.split(gate_up.float(), spec.inner, dim=-1)
    gate, up = gate.clamp(max=CLAMP), up.clamp(-CLAMP, CLAMP)
    return (gate * sigmoid(GAIN * gate) * (up + 1)).to(gate_up.dtype)


# Providers keep gate and up in float32 where the reference rounds them.
@op(samples=_moe_samples, tolerance={"float32": (1e-5, 1e-5), "bfloat16": (2e-2, 3e-2), "float16": (4e-3, 4e-3)})
def moe(
    x: Tensor, logits: Tensor, gate_up: Tensor, down: Tensor, spec: MoeSpec, biases: MoeBiases | None = None
) -> Tensor:
    """The weighted sum of what each token's experts make of it.

    Args:
        x: (tokens, hidden).
        logits: (tokens, experts), what `route` chooses by.
        gate_up: (experts, firsts * inner, hidden), the gate's rows first.
        down: (experts, hidden, inner).
        biases: where the spec is not plain.

    Returns: (tokens, hidden) in the dtype of `x`, summed in float32: a rank's share where `inner` is one. Every expert
    computes every token here, which needs no word from the device; providers compute the chosen ones alone.
    Shazeer et al., "Outrageously Large Neural Networks", 2017.
    """
    biases = biases or MoeBiases()
    weights, ids = route(logits, spec.route, biases.choice)
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in range(spec.route.experts):
        chosen = ids == expert
        weight = (weights * chosen).sum(-1, keepdim=True)
        read = (x.float() * weight).to(x.dtype) if spec.weigh_input else x
        first, second = (None if b is None else b[expert] for b in (biases.gate_up, biases.down))
        made = F.linear(gated(F.linear(read, gate_up[expert], first), spec), down[expert], second).float()
        # `where`, not a product with 0: what an expert makes of a token that is not its own may be infinite.
        out += torch.where(chosen.any(-1, keepdim=True), made if spec.weigh_input else made * weight, 0.0)
    return out.to(x.dtype)
