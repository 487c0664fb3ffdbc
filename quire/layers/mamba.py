"""Mamba 2 as a layer: one projection, a short convolution, the scan, a norm with a gate.

Heads are cut over the mesh, and so are groups, as long as there is one for every rank; else neighbours hold the same.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quire.layers.apart import apart
from quire.layers.build import Build
from quire.layers.linear import Matrix, column, row
from quire.layers.recurrent import Convolution
from quire.loading.recipe import Part
from quire.ops.norm import GatedNormSpec, gated_rms_norm
from quire.ops.ssd import ScanSpec, ScanWeights, ssd_scan
from quire.ops.step import StepInputs

Bound = float | dict[str, str]
"""A number in config.json, which newer files write as an object where it has no end."""


def step_bounds(limit: tuple[Bound, Bound] | None) -> tuple[float, float]:
    """Bounds of time steps, as config.json says them; None has none."""
    low, high = (0.0, float("inf")) if limit is None else (x if isinstance(x, float) else float("inf") for x in limit)
    return low, high


@dataclass(frozen=True, slots=True, kw_only=True)
class MambaPlan:
    """What a model file says about the layer; sizes are over all ranks.

    Attributes:
        heads, groups, head_dim, state: as of `ScanSpec`.
        width: tokens of the convolution.
        bounds: of time steps.
        eps: of the norm.
        bias: whether the two projections have biases.
        conv_bias: whether the convolution has one.
    """

    hidden: int
    heads: int
    groups: int
    head_dim: int
    state: int
    width: int
    bounds: tuple[float, float]
    eps: float
    bias: bool
    conv_bias: bool


class Mamba(nn.Module):
    """The layer. `qkv` makes the norm's gates, what the convolution reads, and time steps."""

    def __init__(self, b: Build, plan: MambaPlan) -> None:
        super().__init__()
        self.mesh = b.mesh
        heads, copies = b.mesh.split(plan.heads, "heads of Mamba layers"), b.mesh.copies(plan.groups)
        inner, shared = plan.heads * plan.head_dim, plan.groups * plan.state
        dtype, device = b.dtype_name, str(b.device)
        groups = plan.groups * copies // b.mesh.size
        self.spec = ScanSpec(heads, groups, plan.head_dim, plan.state, *plan.bounds, dtype, device)
        parts = [(inner, 1), (shared, copies), (shared, copies)]
        every = [(inner, 1), *parts, (plan.heads, 1)]
        self.qkv = column(b, plan.hidden, [Matrix("in_proj", size, several) for size, several in every], plan.bias)
        self.widths = [self.spec.widths[0], sum(self.spec.widths), heads]
        self.conv = Convolution(b / "conv1d", parts, plan.width, plan.conv_bias)
        names = "A_log", "D", "dt_bias"
        scales = [b.weight(Part(name, (plan.heads,), 0), dtype=torch.float32) for name in names]
        self.scales = nn.ParameterList(scales)
        self.weights = ScanWeights(*scales)
        self.norm = GroupNorm(b / "norm", (inner, plan.groups), copies, plan.eps)
        self.out = row(b / "out_proj", inner, plan.hidden, plan.bias)
        self.state = b.recurrent(self.conv.kept, (heads, plan.head_dim, plan.state))
        self._scan = b.op(ssd_scan, self.spec)

    def mix(self, qkv: Tensor, step: StepInputs) -> Tensor:
        """All but the first product: this rank's share of (tokens, hidden), which the mesh must still add up."""
        gate = qkv[:, : self.widths[0]]
        return self.out.forward(self.norm.forward(apart(qkv, step, self._scanned), gate))

    def _scanned(self, made: Tensor, step: StepInputs) -> Tensor:
        pages = self.state.pages
        _, xbc, dt = torch.split(made, self.widths, dim=-1)
        xbc = self.conv.forward(xbc, pages, step)
        out: Tensor = self._scan(xbc, dt, self.weights, pages, step, self.spec)
        return out


class GroupNorm(nn.Module):
    """RMS norm of x * silu(gate) over each group, whichever ranks hold it.

    Args:
        sizes: values and groups, over all ranks.
        copies: so many neighbouring ranks share a group.
    """

    def __init__(self, b: Build, sizes: tuple[int, int], copies: int, eps: float) -> None:
        super().__init__()
        (inner, self.groups), self.mesh, self.copies, self.eps = sizes, b.mesh, copies, eps
        self.size = inner // self.groups
        self.weight = b.weight(Part("weight", (inner,), 0), center=1.0)
        own = max(1, self.groups // b.mesh.size)
        self.spec = GatedNormSpec(self.size, own, eps, True, b.dtype_name, str(b.device))
        self._norm = b.op(gated_rms_norm, self.spec) if copies == 1 else None

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """(tokens, inner) of this rank each, to the same."""
        if self._norm is not None:
            normed: Tensor = self._norm(x, gate, self.weight, self.spec)
            return normed
        wide = x.float() * F.silu(gate.float())
        squares = torch.zeros(len(x), self.groups, device=x.device)
        mine = self.mesh.rank // self.copies
        squares[:, mine] = wide.square().sum(-1)
        mean = self.mesh.all_reduce(squares)[:, mine, None] / self.size
        return (wide * torch.rsqrt(mean + self.eps) * self.weight.float()).to(x.dtype)
