"""Attention that keeps one latent and one rotated key a token (MLA), and the decoder made of it.

Heads are cut over the mesh; latents are not: every rank keeps all of them.
"""

import math
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Tensor, nn

from quire.checkpoint.rope import RopeFacts
from quire.layers.apart import apart
from quire.layers.build import Build
from quire.layers.linear import Linear, Matrix, column, row
from quire.layers.norm import RMSNorm
from quire.layers.rope import rope_table
from quire.loading.recipe import Part
from quire.messages.state import Retention
from quire.ops.attention import StepClass, class_of
from quire.ops.latent import LatentSpec, LatentWeights, latent_attention, latent_prepare
from quire.ops.step import StepInputs

INNER_EPS = 1e-6
"""Of the norms on latents, whatever the config says of the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentPlan:
    """What a model file says about its attention; sizes are over all ranks.

    Attributes:
        query_rank: values of the latent that queries are made of; None makes them of the token itself.
        rank: values of the latent that keys and values are made of.
        plain, turned, value: values of a head, as of `LatentSpec`.
        rope: how the turned ones are rotated; it also gives the scores their scale.
        neighbours: as of `LatentSpec`.
    """

    hidden: int
    heads: int
    query_rank: int | None
    rank: int
    plain: int
    turned: int
    value: int
    rope: RopeFacts
    neighbours: bool

    @property
    def scale(self) -> float:
        """Of the scores: yarn's temperature counts here, too."""
        plain = 1 / math.sqrt(self.plain + self.turned)
        if self.rope.kind == "default" or not self.rope.mscale_all_dim or self.rope.factor <= 1:
            return plain
        growth = 0.1 * self.rope.mscale_all_dim * math.log(self.rope.factor) + 1
        return plain * growth * growth


class LatentAttention(nn.Module):
    """Multi-head latent attention over pages, cut by heads over the mesh."""

    def __init__(self, b: Build, plan: LatentPlan) -> None:
        super().__init__()
        heads, size = b.mesh.split(plan.heads, "num_attention_heads"), plan.plain + plan.turned
        latent = Part("kv_a_proj_with_mqa.weight", (plan.rank + plan.turned, plan.hidden))
        self.q_norm: RMSNorm | None = None
        self.q_up: Linear | None = None
        query = Part("q_proj.weight", (plan.heads * size, plan.hidden), 0)
        if plan.query_rank is not None:
            query = Part("q_a_proj.weight", (plan.query_rank, plan.hidden))
            self.q_norm = RMSNorm(b / "q_a_layernorm", plan.query_rank, INNER_EPS)
            self.q_up = column(b, plan.query_rank, [Matrix("q_b_proj", plan.heads * size)])
        self.widths = [plan.query_rank or heads * size, plan.rank + plan.turned]
        self.qkv = Linear(b, b.matrix(query, latent))
        self.up = (b / "kv_b_proj").table(Part("weight", (plan.heads * (plan.plain + plan.value), plan.rank), 0))
        self._heads_up: Tensor | None = None
        self.out = row(b / "o_proj", plan.heads * plan.value, plan.hidden)
        self.spec = LatentSpec(
            heads,
            plan.rank,
            plan.plain,
            plan.turned,
            plan.value,
            plan.scale,
            INNER_EPS,
            plan.neighbours,
            b.dtype_name,
            str(b.device),
            None if b.kv_dtype is None else str(b.kv_dtype).removeprefix("torch."),
        )
        norm = (b / "kv_a_layernorm").weight(Part("weight", (plan.rank,)), center=1.0)
        self.norm, self.weights = norm, LatentWeights(rope_table(b, plan.rope, plan.turned), norm)
        self.state = b.state(1, plan.rank, Retention(), plan.turned)
        self._prepare = b.op(latent_prepare, self.spec)
        self._attend = {step: b.op(latent_attention, replace(self.spec, step=step)) for step in get_args(StepClass)}

    def forward(self, x: Tensor, step: StepInputs) -> Tensor:
        """(tokens, hidden) to this rank's share of (tokens, hidden), which the mesh must still add up."""
        return self.mix(self.qkv.forward(x), step)

    def _by_head(self) -> Tensor:
        """(heads, plain + value, rank): read as it is, since products of its halves go either way.

        What a checkpoint holds quantized is widened at the first call.
        """
        if self._heads_up is None:
            rows = torch.arange(self.up.rows, device=self.up.device)
            wide = self.up if self.up.stored is None else self.up.stored.rows(self.up, rows)
            self._heads_up = wide.view(self.spec.heads, -1, self.spec.rank)
        return self._heads_up

    def mix(self, qkv: Tensor, step: StepInputs) -> Tensor:
        """All of `forward` but the first product."""
        q, kv = torch.split(qkv, self.widths, dim=-1)
        if self.q_norm is not None and self.q_up is not None:
            q = self.q_up.forward(self.q_norm.forward(q))
        pages = self.state.pages
        q = self._prepare(q, kv, self.weights, pages, step, self.spec)
        return self.out.forward(apart(q, step, self._attended))

    def _attended(self, q: Tensor, step: StepInputs) -> Tensor:
        up = self._by_head()
        out: Tensor = self._attend[class_of(step)](q, up, self.state.pages, step, self.spec)
        return out
