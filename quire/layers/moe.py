"""The mixture-of-experts feed-forward layer: a router, experts cut over their inner size, experts for all tokens."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from quire.base.errors import CheckpointError
from quire.layers.build import Build
from quire.layers.experts import Arrangement, biases, matrices
from quire.layers.linear import Linear
from quire.layers.mlp import MLP, GatedMLP, MLPPlan
from quire.loading.recipe import Part, Weight
from quire.ops.moe import Gate, MoeBiases, MoeSpec, RouteSpec, moe, sigmoid
from quire.ops.stored_moe import StoredMoeSpec, stored_moe


@dataclass(frozen=True, slots=True)
class SharedPlan:
    """Experts that read every token, as one feed-forward layer.

    Attributes:
        inner: values between its products, over all ranks.
        name: of its module.
        gate: of the module whose sigmoid weighs what it makes; None has none.
        gated: whether it is silu(gate) * up between its products; else relu(up) ** 2.
        bias: whether these have biases.
    """

    inner: int
    name: str = "shared_experts"
    gate: str | None = None
    gated: bool = True
    bias: bool = False


@dataclass(frozen=True, slots=True)
class MoePlan:
    """What a layer of experts is like.

    Attributes:
        hidden: values of a token.
        inner: values between an expert's two products, over all ranks.
        experts: how many there are.
        top_k: how many each token goes to.
        normalize, score, groups, top_groups, group_best, scale: how they are chosen and weighed, as of `RouteSpec`.
        choice_bias: whether the choice has biases (`e_score_correction_bias` of the router).
        router: name of the router's module.
        router_bias: whether it has a bias.
        wide_router: whether logits are worked out in float32.
        gate, weigh_input: as of `MoeSpec`.
        bias: whether experts have biases; they are woven.
        arrangement: of the experts' tensors.
        names: of the modules of gate, up and down, where each expert has its own.
        module: above the experts' tensors.
        fused: tensors of gates and ups, and of downs, where one holds those of all experts.
        shared: experts for all tokens, added up with the chosen ones.
    """

    hidden: int
    inner: int
    experts: int
    top_k: int
    normalize: bool
    score: Literal["softmax", "sigmoid"] = "softmax"
    groups: int = 1
    top_groups: int = 1
    group_best: int = 1
    scale: float = 1.0
    choice_bias: bool = False
    router: str = "gate"
    router_bias: bool = False
    wide_router: bool = False
    gate: Gate = "silu"
    weigh_input: bool = False
    bias: bool = False
    arrangement: Arrangement = "single"
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    module: str | None = "experts"
    fused: tuple[str, str] = ("gate_up_proj", "down_proj")
    shared: SharedPlan | None = None

    @property
    def firsts(self) -> int:
        """Matrices of an expert's first product: gate and up, or up alone."""
        return 1 if self.gate == "relu2" else 2


class MoE(nn.Module):
    """sum over a token's experts of weight * down(silu(gate(x)) * up(x)).

    Every rank holds a share of every expert, so ranks stay equally busy whatever the router does. Raises
    CheckpointError if tokens need more experts than there are.
    """

    def __init__(self, b: Build, plan: MoePlan) -> None:
        super().__init__()
        _check(plan)
        inner = b.mesh.split(plan.inner, "moe_intermediate_size")
        self.router = self._router(b, plan)
        self.choice_bias = None
        if plan.choice_bias:
            part = Part("e_score_correction_bias", (plan.experts,))
            self.choice_bias = (b / plan.router).weight(part, dtype=torch.float32)
        at = b if plan.module is None else b / plan.module
        self.gate_up, self.down = matrices(at, plan, plan.arrangement)
        self.biases = nn.ParameterList(biases(at, plan) if plan.bias else [])
        self.spec = MoeSpec(
            _route(b, plan), plan.hidden, inner, b.dtype_name, str(b.device), plan.gate, plan.bias, plan.weigh_input
        )
        self.stored = stored_spec(self.spec, self.gate_up, self.down)
        self._moe = b.op(moe, self.spec) if self.stored is None else b.op(stored_moe, self.stored)
        self.shared = None if plan.shared is None else Shared(b, plan.hidden, plan.shared)

    def forward(self, x: Tensor) -> Tensor:
        """(tokens, hidden) to this rank's share of (tokens, hidden), which the mesh must still add up."""
        experts, inner, hidden = self.spec.route.experts, self.spec.inner, self.spec.hidden
        logits = self.router.forward(x.to(self.router.weight.dtype))
        out: Tensor
        if self.stored is not None:
            out = self._moe(x, logits, self.gate_up, self.down, self.stored, self._biases())
        else:
            gate_up, down = self.gate_up.view(experts, -1, hidden), self.down.view(experts, hidden, inner)
            out = self._moe(x, logits, gate_up, down, self.spec, self._biases())
        return out if self.shared is None else out + self.shared.forward(x)

    def _biases(self) -> MoeBiases | None:
        if self.choice_bias is None and not self.biases:
            return None
        experts = self.spec.route.experts
        first, second = (bias.view(experts, -1) for bias in self.biases) if self.biases else (None, None)
        return MoeBiases(self.choice_bias, first, second)

    @staticmethod
    def _router(b: Build, plan: MoePlan) -> Linear:
        at = replace(b / plan.router, dtype=torch.float32) if plan.wide_router else b / plan.router
        bias = at.weight(Part("bias", (plan.experts,))) if plan.router_bias else None
        return Linear(at, at.weight(Part("weight", (plan.experts, plan.hidden))), bias)


class Shared(nn.Module):
    """A feed-forward part for all tokens, weighed by the sigmoid of one more product where there is one."""

    def __init__(self, b: Build, hidden: int, plan: SharedPlan) -> None:
        super().__init__()
        self.mlp: GatedMLP | MLP
        if plan.gated:
            self.mlp = GatedMLP(b / plan.name, hidden, plan.inner, bias=plan.bias)
        else:
            names = ("up_proj", "down_proj")
            self.mlp = MLP(b / plan.name, MLPPlan(hidden, plan.inner, "relu2", names, plan.bias))
        self.weight = None
        if plan.gate is not None:
            self.weight = Linear(b / plan.gate, (b / plan.gate).weight(Part("weight", (1, hidden))))

    def forward(self, x: Tensor) -> Tensor:
        """(tokens, hidden) to this rank's share of (tokens, hidden)."""
        made = self.mlp.forward(x)
        return made if self.weight is None else made * sigmoid(self.weight.forward(x))


class ParallelSum(nn.Module):
    """Two feed-forward parts that read the same, added up."""

    def __init__(self, first: MoE, second: GatedMLP) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        """(tokens, hidden) to this rank's share of (tokens, hidden), which the mesh must still add up."""
        return self.first.forward(x) + self.second.forward(x)


def stored_spec(spec: MoeSpec, gate_up: Weight, down: Weight) -> StoredMoeSpec | None:
    """The spec of experts that are stored otherwise than row by row. Raises CheckpointError where only some are."""
    if gate_up.stored is None and down.stored is None:
        return None
    if gate_up.stored is None or down.stored is None:
        raise CheckpointError(f"{down.recipe.parts[0].name}: only some matrices of the experts are quantized")
    return StoredMoeSpec(spec, gate_up.stored, down.stored)


def _route(b: Build, plan: MoePlan) -> RouteSpec:
    return RouteSpec(
        plan.experts,
        plan.top_k,
        plan.normalize,
        "float32" if plan.wide_router else b.dtype_name,
        str(b.device),
        plan.score,
        plan.choice_bias,
        plan.groups,
        plan.top_groups,
        plan.group_best,
        plan.scale,
        b.deterministic,
    )


def _check(plan: MoePlan) -> None:
    if plan.experts % plan.groups or plan.top_groups > plan.groups:
        raise CheckpointError(
            f"config.json: {plan.experts} experts do not form {plan.groups} groups, {plan.top_groups} of them chosen"
        )
    within = plan.experts // plan.groups * plan.top_groups
    if plan.top_k > within:
        what = f"{plan.experts} experts" if plan.groups == 1 else f"{within} experts of a token's groups"
        raise CheckpointError(f"config.json: num_experts_per_tok={plan.top_k} is more than the {what}")
    if plan.experts // plan.groups < plan.group_best:
        raise CheckpointError(f"config.json: n_group={plan.groups} leaves fewer than {plan.group_best} experts a group")
