"""Experts of modules that were not written for this engine: ours where they are the usual ones, else dealt out.

The usual ones become the op for mixtures, with its kernels, ways of storing and quantization, cut over the ranks within
each expert. Who is chosen is said by the module around them. Knows no library of models: `models/transformers` does.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from quire.layers.build import Build
from quire.layers.moe import stored_spec
from quire.loading.recipe import Part, Weight
from quire.ops.moe import MoeSpec, RouteSpec, moe
from quire.ops.stored_moe import stored_moe
from quire.parallel.mesh import Mesh

NOBODY = -1e30
"""The logit of an expert that is not chosen."""


class ShardedExperts(nn.Module):
    """Experts of which this rank has its share, in order; the others' add theirs."""

    def __init__(self, experts: nn.Module, count: int, mesh: Mesh) -> None:
        super().__init__()
        self.experts, self._mesh = experts, mesh
        self._count = count // mesh.size

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """(tokens, hidden) and who reads them, (tokens, chosen), to (tokens, hidden)."""
        mine = top_k_index - self._mesh.rank * self._count
        # One behind the last is nobody.
        mine = mine.masked_fill((mine < 0) | (mine >= self._count), self._count)
        return self._mesh.all_reduce(self.experts(hidden_states, mine, top_k_weights))


class AdoptedExperts(nn.Module):
    """Experts of the usual kind, down(silu(gate(x)) * up(x)), whose choice is made elsewhere.

    Args:
        first, second: parts of the matrices of gate and up, each expert's gate before its up, and of down.
        shape: (experts, 2 * inner, hidden) of the first, over all ranks.
    """

    def __init__(self, b: Build, first: tuple[Part, ...], second: tuple[Part, ...], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.count, width, self.hidden = shape
        self.inner, self._build = b.mesh.split(width // 2, "moe_intermediate_size"), b
        rows = width // 2
        matrices = [
            replace(part, cut=0, first=start, rows=rows)
            for part in first
            for start in range(part.first, part.first + (part.rows or part.shape[0]), rows)
        ]
        self.gate_up = b.experts(2 * self.count, matrices)
        self.down = b.experts(self.count, [replace(part, cut=1) for part in second])
        self._op: Callable[..., Any] | None = None

    @property
    def weights(self) -> list[Weight]:
        """What a loader fills."""
        return [self.gate_up, self.down]

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """(tokens, hidden) and who reads them, (tokens, chosen), to (tokens, hidden), whole on every rank."""
        call = self._op or self._begin(top_k_index.shape[1])
        # One behind the last is nobody; and a first run, without values, may have anything for weights.
        weights = top_k_weights.float().masked_fill(top_k_index >= self.count, 0.0)
        chosen = torch.where(weights > 0, weights.log(), NOBODY)
        logits = weights.new_full((len(weights), self.count + 1), NOBODY)
        logits = logits.scatter(1, top_k_index.long(), chosen)[:, : self.count].contiguous()
        made: Tensor = call(hidden_states.contiguous(), logits)
        return self._build.mesh.all_reduce((made * weights.sum(1, keepdim=True)).to(hidden_states.dtype))

    def _begin(self, chosen: int) -> Callable[..., Any]:
        """Choose the op, once it is known how many experts a token has."""
        b = self._build
        # A softmax over logarithms gives back what they are of, but for the sum.
        route = RouteSpec(self.count, chosen, True, "float32", str(b.device))
        spec = MoeSpec(route, self.hidden, self.inner, b.dtype_name, str(b.device))
        stored = stored_spec(spec, self.gate_up, self.down)
        if stored is not None:
            function = b.op(stored_moe, stored)
            self._op = lambda x, logits: function(x, logits, self.gate_up, self.down, stored, None)
            return self._op
        function = b.op(moe, spec)
        gate_up, down = self.gate_up.view(self.count, -1, self.hidden), self.down.view(self.count, self.hidden, -1)
        self._op = lambda x, logits: function(x, logits, gate_up, down, spec, None)
        return self._op
