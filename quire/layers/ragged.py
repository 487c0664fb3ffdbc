"""Attention of encoders as a layer: projections, and attention in both directions among the tokens of a step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from quire.base.errors import CheckpointError
from quire.checkpoint.rope import RopeFacts
from quire.layers.build import Build
from quire.layers.linear import Matrix, column, row
from quire.layers.rope import rope_table
from quire.ops.ragged import RaggedSpec, ragged_attention
from quire.ops.rope import RopeSpec, rope
from quire.ops.step import StepInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class RaggedPlan:
    """What a model file says about its attention; sizes are over all ranks.

    Attributes:
        rope: how heads are rotated; None leaves them.
        reach: tokens that one sees on either side; None sees all.
        qkv_bias, out_bias: whether the projections have biases.
        names: of the modules that make queries, keys and values; the same name thrice for one fused module.
        out: of the module behind.
    """

    hidden: int
    heads: int
    rope: RopeFacts | None = None
    reach: int | None = None
    qkv_bias: bool = True
    out_bias: bool = True
    names: tuple[str, str, str] = ("q_proj", "k_proj", "v_proj")
    out: str = "o_proj"


class RaggedAttention(nn.Module):
    """Attention that looks both ways, cut by heads over the mesh; keeps nothing between steps."""

    def __init__(self, b: Build, plan: RaggedPlan) -> None:
        super().__init__()
        if plan.hidden % plan.heads:
            raise CheckpointError(
                f"config.json: hidden_size={plan.hidden} is no multiple of num_attention_heads={plan.heads}"
            )
        size = plan.hidden // plan.heads
        heads = b.mesh.split(plan.heads, "num_attention_heads")
        self.qkv = column(b, plan.hidden, [Matrix(name, plan.hidden) for name in plan.names], plan.qkv_bias)
        self.out = row(b / plan.out, plan.hidden, plan.hidden, plan.out_bias)
        self.spec = RaggedSpec(heads, size, size**-0.5, plan.reach, b.dtype_name, str(b.device))
        self._attend = b.op(ragged_attention, self.spec)
        self._turn: Callable[..., Any] | None = None
        if plan.rope is not None:
            self._table = rope_table(b, plan.rope, size)
            self._turn_spec = RopeSpec(size, size, b.dtype_name, str(b.device))
            self._turn = b.op(rope, self._turn_spec)

    def forward(self, x: Tensor, step: StepInputs) -> Tensor:
        """(tokens, hidden) to this rank's share of (tokens, hidden), which the mesh must still add up."""
        q, k, v = self.qkv.forward(x).view(len(x), 3, self.spec.heads, self.spec.head_dim).unbind(1)
        if self._turn is not None:
            q, k = (self._turn(part, step.positions, self._table, self._turn_spec) for part in (q, k))
        out: Tensor = self._attend(q, k, v, step, self.spec)
        return self.out.forward(out.flatten(1))
