"""The mixture-of-experts feed-forward layer: a router, and experts cut over their inner size."""

from dataclasses import dataclass

from torch import Tensor, nn

from quire.layers.build import Build
from quire.layers.linear import Linear
from quire.loading.recipe import Part
from quire.ops.moe import MoeSpec, RouteSpec, moe


@dataclass(frozen=True, slots=True)
class MoePlan:
    """What a layer of experts is like.

    Attributes:
        hidden: values of a token.
        inner: values between an expert's two products, over all ranks.
        experts: how many there are.
        top_k: how many each token goes to.
        normalize: whether the weights of a token's experts are made to sum to 1.
    """

    hidden: int
    inner: int
    experts: int
    top_k: int
    normalize: bool


class MoE(nn.Module):
    """sum over a token's experts of weight * down(silu(gate(x)) * up(x)).

    Every rank holds a share of every expert, so ranks stay equally busy whatever the router does.
    """

    def __init__(self, b: Build, plan: MoePlan) -> None:
        super().__init__()
        inner = b.mesh.split(plan.inner, "moe_intermediate_size")
        self.router = Linear(b / "gate", (b / "gate").weight(Part("weight", (plan.experts, plan.hidden))))
        self.gate_up = (b / "experts").weight(*_gate_up(plan), fused=_fused_gate_up(plan))
        self.down = (b / "experts").weight(*_down(plan), fused=_fused_down(plan))
        route = RouteSpec(plan.experts, plan.top_k, plan.normalize, b.dtype_name, str(b.device))
        self.spec = MoeSpec(route, plan.hidden, inner, b.dtype_name, str(b.device))
        self._moe = b.op(moe, self.spec)

    def forward(self, x: Tensor) -> Tensor:
        """(tokens, hidden) to this rank's share of (tokens, hidden), which the mesh must still add up."""
        experts, inner, hidden = self.spec.route.experts, self.spec.inner, self.spec.hidden
        gate_up = self.gate_up.view(experts, 2 * inner, hidden)
        out: Tensor = self._moe(x, self.router.forward(x), gate_up, self.down.view(experts, hidden, inner), self.spec)
        return out


def _gate_up(plan: MoePlan) -> list[Part]:
    """One tensor per expert and matrix, as checkpoints are published."""
    shape = (plan.inner, plan.hidden)
    names = ("gate_proj", "up_proj")
    return [Part(f"{i}.{name}.weight", shape, 0) for i in range(plan.experts) for name in names]


def _down(plan: MoePlan) -> list[Part]:
    return [Part(f"{i}.down_proj.weight", (plan.hidden, plan.inner), 1) for i in range(plan.experts)]


def _fused_gate_up(plan: MoePlan) -> tuple[Part, ...]:
    """One tensor for all experts, (experts, 2 * inner, hidden), as transformers holds them."""
    inner, count = plan.inner, 2 * plan.experts
    shape = (count * inner, plan.hidden)
    return tuple(Part("gate_up_proj", shape, 0, first=i * inner, rows=inner, stacked=True) for i in range(count))


def _fused_down(plan: MoePlan) -> tuple[Part, ...]:
    return (Part("down_proj", (plan.experts * plan.hidden, plan.inner), 1, stacked=True),)
