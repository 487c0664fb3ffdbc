"""Gated delta net as a layer: projections, a short convolution, the recurrence, a norm with a gate.

Heads of keys and of values are cut over the mesh; neighbouring value heads share a key head.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quire.layers.apart import apart
from quire.layers.build import Build
from quire.layers.linear import Interleave, Matrix, column, row
from quire.layers.recurrent import Convolution
from quire.loading.recipe import Part
from quire.ops.delta import DeltaSpec, DeltaWeights, gated_delta_rule
from quire.ops.norm import GatedNormSpec, gated_rms_norm
from quire.ops.step import StepInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaPlan:
    """What a model file says about the layer; sizes are over all ranks.

    Attributes:
        key_heads, value_heads, key_dim, value_dim: as of `DeltaSpec`.
        width: tokens of the convolution.
        eps: of the norm.
        interleaved: whether the checkpoint holds two tensors, in_proj_qkvz and in_proj_ba, in each of which everything
            that belongs to a key head lies together; otherwise there are four, in order.
    """

    hidden: int
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    width: int
    eps: float
    interleaved: bool


class GatedDeltaNet(nn.Module):
    """The layer. `qkv` makes queries, keys, values, the norm's gates, learning rates and decays."""

    def __init__(self, b: Build, plan: DeltaPlan) -> None:
        super().__init__()
        keys, values = plan.key_heads * plan.key_dim, plan.value_heads * plan.value_dim
        heads = b.mesh.split(plan.value_heads, "linear_num_value_heads")
        key_heads = b.mesh.split(plan.key_heads, "linear_num_key_heads")
        dtype, device = b.dtype_name, str(b.device)
        self.spec = DeltaSpec(key_heads, heads, plan.key_dim, plan.value_dim, dtype, device)
        self.qkv = column(b, plan.hidden, _matrices(plan))
        self.widths = [sum(self.spec.widths), self.spec.widths[2], 2 * heads]
        self.conv = Convolution(b / "conv1d", [(keys, 1), (keys, 1), (values, 1)], plan.width, bias=False)
        gates = [b.weight(Part(name, (plan.value_heads,), 0), dtype=torch.float32) for name in ("A_log", "dt_bias")]
        self.gates = nn.ParameterList(gates)
        self.weights = DeltaWeights(gates[0], gates[1])
        self.norm = (b / "norm").weight(Part("weight", (plan.value_dim,)), center=1.0)
        self.norm_spec = GatedNormSpec(plan.value_dim, heads, plan.eps, False, dtype, device)
        self.out = row(b / "out_proj", values, plan.hidden)
        self.state = b.recurrent(self.conv.kept, (heads, plan.key_dim, plan.value_dim))
        self._rule, self._norm = b.op(gated_delta_rule, self.spec), b.op(gated_rms_norm, self.norm_spec)

    def mix(self, qkv: Tensor, step: StepInputs) -> Tensor:
        """All but the first product: this rank's share of (tokens, hidden), which the mesh must still add up."""
        return self.out.forward(apart(qkv, step, self._mixed))

    def _mixed(self, made: Tensor, step: StepInputs) -> Tensor:
        pages = self.state.pages
        qkv, gate, gates = torch.split(made, self.widths, dim=-1)
        qkv = self.conv.forward(qkv, pages, step)
        out: Tensor = self._rule(qkv, gates, self.weights, pages, step, self.spec)
        normed: Tensor = self._norm(out, gate, self.norm, self.norm_spec)
        return normed


def _matrices(plan: DeltaPlan) -> list[Matrix]:
    """Of queries, keys, values, the norm's gates, learning rates, decays."""
    heads, key, value = plan.value_heads, plan.key_dim, plan.value_dim
    keys, values, each = plan.key_heads * key, heads * value, heads // plan.key_heads
    if not plan.interleaved:
        sizes = {"in_proj_qkv": [keys, keys, values], "in_proj_z": [values], "in_proj_b": [heads], "in_proj_a": [heads]}
        return [Matrix(name, size) for name, several in sizes.items() for size in several]
    group = 2 * key + 2 * each * value
    interleaves = [
        (keys, Interleave(group, 0, 1, key)),
        (keys, Interleave(group, key, 1, key)),
        (values, Interleave(group, 2 * key, each, value)),
        (values, Interleave(group, 2 * key + each * value, each, value)),
    ]
    made = [Matrix("in_proj_qkvz", size, interleave=interleave) for size, interleave in interleaves]
    return made + [Matrix("in_proj_ba", heads, interleave=Interleave(2 * each, at, each, 1)) for at in (0, each)]
