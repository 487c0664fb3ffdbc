"""Attention as a layer: projections, and the op that norms, rotates, writes pages and attends.

A model file describes its attention by an `AttentionPlan`; who computes it is chosen here, once for each class of step.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Tensor, nn

from quire.base.errors import CheckpointError
from quire.checkpoint.rope import RopeFacts
from quire.layers.apart import apart
from quire.layers.build import Build
from quire.layers.cache_scales import cache_scales
from quire.layers.heads import HeadChanges, HeadLayerNorms, LogScaling, WideNorms
from quire.layers.linear import Interleave, Matrix, column, row
from quire.layers.rope import rope_table, rotary_dim
from quire.loading.recipe import Part
from quire.ops.attention import (
    AttentionSpec,
    HeadWeights,
    KVPages,
    StepClass,
    attend,
    class_of,
    paged_attention,
    prepare,
)
from quire.ops.step import StepInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionPlan:
    """What a model file says about its attention; sizes are over all ranks.

    Attributes:
        rope: how heads are rotated; None leaves them.
        neighbours: whether values 2i and 2i + 1 of a head are rotated together, and not i and i + half.
        window: tokens that a query sees, itself included; None sees all.
        chunk: a query sees only tokens since the last multiple of this; None has no such bound.
        sinks: whether heads have sinks, as of `AttentionSpec`.
        scale: of the scores; None is head_dim ** -0.5.
        soft_cap: bound of the scores, by tanh.
        head_norm_eps: epsilon of RMS norms on query and key heads (modules q_norm and k_norm); None has none.
        head_norm_offset: added to the weights of those.
        head_norm_weight: whether those have weights.
        wide_norm_eps: of RMS norms over all query heads and all key heads, under the same names.
        head_layer_norm_eps: of layer norms on query and key heads, with weights for each head, under the same names.
        bound: queries, keys and values are clipped to this after those two, before the first; None leaves them.
        growth: of queries with their position.
        qkv_bias, out_bias: whether the projections have biases.
        names: of the modules that make queries, keys and values; the same name thrice for one fused module.
        out_name: of the module that projects back.
        gated: whether results are weighed by the sigmoid of gates, which lie beside the queries, head by head.
        interleaved: the fused module has the queries of a KV head, its key and its value side by side, head by head.
        transposed: whether the checkpoint holds matrices as (inputs, outputs).
    """

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    rope: RopeFacts | None
    neighbours: bool = False
    window: int | None = None
    chunk: int | None = None
    sinks: bool = False
    scale: float | None = None
    soft_cap: float | None = None
    head_norm_eps: float | None = None
    head_norm_offset: float = 0.0
    head_norm_weight: bool = True
    wide_norm_eps: float | None = None
    head_layer_norm_eps: float | None = None
    bound: float | None = None
    growth: LogScaling | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    names: tuple[str, str, str] = ("q_proj", "k_proj", "v_proj")
    out_name: str = "o_proj"
    gated: bool = False
    interleaved: bool = False
    transposed: bool = False

    @property
    def halves(self) -> tuple[int, int] | None:
        """How rows of query and key heads are put in order, as `Part` says it."""
        return (self.head_dim, rotary_dim(self.rope, self.head_dim)) if self.neighbours and self.rope else None


class Attention(nn.Module):
    """Grouped-query attention over pages, cut by heads over the mesh."""

    def __init__(self, b: Build, plan: AttentionPlan) -> None:
        super().__init__()
        _check(plan)
        heads, copies = b.mesh.split(plan.heads, "num_attention_heads"), b.mesh.copies(plan.kv_heads)
        kv_heads = plan.kv_heads * copies // b.mesh.size
        self.qkv = column(b, plan.hidden, _matrices(plan, copies), plan.qkv_bias)
        width = plan.heads * plan.head_dim
        self.out = row(b / plan.out_name, width, plan.hidden, plan.out_bias, plan.transposed)
        self.spec = AttentionSpec(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=plan.head_dim,
            scale=plan.head_dim**-0.5 if plan.scale is None else plan.scale,
            rotary_dim=rotary_dim(plan.rope, plan.head_dim),
            window=plan.window,
            chunk=plan.chunk,
            sinks=plan.sinks,
            soft_cap=plan.soft_cap,
            norm_eps=plan.head_norm_eps,
            norm_dtype="float32" if plan.head_norm_offset else None,
            dtype=b.dtype_name,
            device=str(b.device),
            kv_dtype=None if b.kv_dtype is None else str(b.kv_dtype).removeprefix("torch."),
            batch_invariant=b.deterministic,
        )
        self.gated = plan.gated
        self.state = b.state(kv_heads, plan.head_dim, self.spec.retention)
        self.state.k_scale, self.state.v_scale = cache_scales(b)
        self.q_norm, self.k_norm = (self._head_norm(b / name, plan) for name in ("q_norm", "k_norm"))
        self.sinks = b.weight(Part("sinks", (plan.heads,), 0)) if plan.sinks else None
        self.head_weights = HeadWeights(rope_table(b, plan.rope, plan.head_dim), self.q_norm, self.k_norm, self.sinks)
        self.before = _changes(b, plan, copies, self.spec)
        self._mixers = _mixers(b, self.spec)
        self._parts = self._mixers["decode"] is not self._mixers["eager"]

    def forward(self, x: Tensor, step: StepInputs) -> Tensor:
        """(tokens, hidden) to this rank's share of (tokens, hidden), which the mesh must still add up."""
        return self.mix(self.qkv.forward(x), step)

    def mix(self, qkv: Tensor, step: StepInputs) -> Tensor:
        """All of `forward` but the first product."""
        qkv, gate = self.heads_of(qkv, step)
        mixed = apart(qkv, step, self._mixed) if self._parts else self._mixed(qkv, step)
        return self.out.forward(mixed if gate is None else mixed * torch.sigmoid(gate))

    def heads_of(self, qkv: Tensor, step: StepInputs) -> tuple[Tensor, Tensor | None]:
        """Queries, keys and values as `prepare` takes them, and the gates of results where there are any."""
        gate: Tensor | None = None
        if self.gated:
            qkv, gate = qkv.tensor_split([sum(self.spec.parts) * self.spec.head_dim], dim=-1)
            qkv = qkv.contiguous()
        return qkv if self.before is None else self.before.forward(qkv, step.positions), gate

    def _mixed(self, qkv: Tensor, step: StepInputs) -> Tensor:
        return self._mixers[class_of(step)](qkv, self.head_weights, self.state.pages, step, self.spec)

    @staticmethod
    def _head_norm(b: Build, plan: AttentionPlan) -> nn.Parameter | None:
        if plan.head_norm_eps is None:
            return None
        if not plan.head_norm_weight:
            return nn.Parameter(torch.ones(plan.head_dim, dtype=b.dtype, device=b.device), requires_grad=False)
        # A weight of 16 bits would lose most of its own digits in the sum with the offset.
        part = Part("weight", (plan.head_dim,), halves=plan.halves, plus=plan.head_norm_offset)
        return b.weight(part, center=1.0, dtype=torch.float32 if plan.head_norm_offset else None)


def _matrices(plan: AttentionPlan, copies: int) -> list[Matrix]:
    """The matrices of queries, keys and values."""
    per, size = plan.heads // plan.kv_heads, plan.head_dim
    every = (per + 2) * size
    interleaves = (
        Interleave(every, 0, per, size),
        Interleave(every, per * size, 1, size),
        Interleave(every, (per + 1) * size, 1, size),
    )
    heads, halves = (plan.heads, plan.kv_heads, plan.kv_heads), (plan.halves, plan.halves, None)
    if plan.gated:
        query, gate = (
            Matrix(plan.names[0], heads[0] * size, interleave=Interleave(2 * size, at, 1, size)) for at in (0, size)
        )
        others = [Matrix(name, plan.kv_heads * size, copies) for name in plan.names[1:]]
        return [query, *others, gate]
    return [
        Matrix(
            plan.names[i],
            heads[i] * size,
            copies if i else 1,
            interleave=interleaves[i] if plan.interleaved else None,
            halves=halves[i],
            transposed=plan.transposed,
        )
        for i in range(3)
    ]


def _changes(b: Build, plan: AttentionPlan, copies: int, spec: AttentionSpec) -> HeadChanges | None:
    """What happens before heads are rotated, if anything does."""
    heads = plan.heads, plan.kv_heads
    norms: WideNorms | HeadLayerNorms | None = None
    if plan.wide_norm_eps is not None:
        norms = WideNorms(b, heads, copies, plan.head_dim, plan.wide_norm_eps)
    elif plan.head_layer_norm_eps is not None:
        norms = HeadLayerNorms(b, heads, copies, plan.halves, (plan.head_dim, plan.head_layer_norm_eps))
    if norms is None and plan.bound is None and plan.growth is None:
        return None
    q, k, v = (n * plan.head_dim for n in spec.parts)
    return HeadChanges((q, k, v), plan.bound, norms, plan.growth)


Mixer = Callable[[Tensor, HeadWeights, KVPages, StepInputs, AttentionSpec], Tensor]
"""The op `attend`, or its two halves one after the other."""


def _mixers(b: Build, spec: AttentionSpec) -> dict[StepClass, Mixer]:
    """For each class of step who is best at it; one for all where that must not change a result."""
    if b.deterministic:
        return dict.fromkeys(get_args(StepClass), _mixer(b, spec))
    return {step: _mixer(b, replace(spec, step=step)) for step in get_args(StepClass)}


def _mixer(b: Build, spec: AttentionSpec) -> Mixer:
    """Attention by the best provider: as one block if it has that, else in two halves, each by its own best."""
    block, half = (b.choose(op, spec) for op in (attend, paged_attention))
    if len(block.refused) <= len(half.refused):
        return b.op(attend, spec)
    prepared, attended = b.op(prepare, spec), b.op(paged_attention, spec)

    def halves(qkv: Tensor, weights: HeadWeights, pages: KVPages, step: StepInputs, spec: AttentionSpec) -> Tensor:
        sinks = (weights.sinks,) if spec.sinks else ()
        out: Tensor = attended(prepared(qkv, weights, pages, step, spec), pages, step, spec, *sinks)
        return out.flatten(1)

    return halves


def _check(plan: AttentionPlan) -> None:
    if plan.heads % plan.kv_heads:
        raise CheckpointError(
            f"config.json: num_attention_heads={plan.heads} is no multiple of num_key_value_heads={plan.kv_heads}"
        )
    turned = rotary_dim(plan.rope, plan.head_dim)
    if turned % 2 or not turned:
        raise CheckpointError(f"config.json: {turned} values of each head would be rotated; it must be an even number")
    if plan.rope is not None and plan.rope.kind == "longrope":
        for field, factors in (("short_factor", plan.rope.short_factor), ("long_factor", plan.rope.long_factor)):
            if len(factors) != turned // 2:
                raise CheckpointError(f"config.json: {field} has {len(factors)} entries, the heads need {turned // 2}")
