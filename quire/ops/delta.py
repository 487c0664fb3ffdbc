"""The gated delta rule: a state that maps keys to values, decays, and is corrected by what each token brings.

Yang, Kautz, Hatamizadeh, "Gated Delta Networks: Improving Mamba2 with Delta Rule", 2024, equation 10.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.ops.recurrent import CHUNKED, STEPS, StatePages, state_step, visits
from quire.ops.registry import DEFAULT_TOLERANCE, op
from quire.ops.samples import FLOATS, normal
from quire.ops.step import StepInputs

KEY_EPS = 1e-6
"""Added to the squared length of queries and keys before they are divided by it."""


@dataclass(frozen=True, slots=True)
class DeltaSpec:
    """One layer's recurrence, as this rank computes it. Neighbouring value heads share a key head.

    `pages.state` is (pages, value_heads, key_dim, value_dim).
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    dtype: str = "float32"
    device: str = "cpu"

    @property
    def widths(self) -> list[int]:
        """Values of a token's queries, keys and values."""
        keys = self.key_heads * self.key_dim
        return [keys, keys, self.value_heads * self.value_dim]


@dataclass(frozen=True, slots=True)
class DeltaWeights:
    """What gates are made with: (value_heads,) float32 each.

    Attributes:
        a_log: logarithm of how fast states decay.
        dt_bias: added to what tokens say of it.
    """

    a_log: Tensor
    dt_bias: Tensor


def _samples() -> Iterator[tuple[DeltaSpec, dict[str, Any]]]:
    for dtype in FLOATS:
        for queries, lengths, page_size in STEPS:
            spec = DeltaSpec(2, 4, 16, 32, dtype) if page_size == 4 else DeltaSpec(2, 2, 16, 16, dtype)
            step, pages = state_step(queries, lengths, page_size)
            heads, tokens = spec.value_heads, sum(queries)
            state = normal("float32", pages, heads, spec.key_dim, spec.value_dim, seed=3)
            yield (
                spec,
                {
                    "qkv": normal(dtype, tokens, sum(spec.widths)),
                    "gates": normal(dtype, tokens, 2 * heads + 8, seed=1)[:, 8:],
                    "weights": DeltaWeights(normal("float32", heads, seed=2), normal("float32", heads, seed=4)),
                    "pages": StatePages(torch.zeros(pages, 1, 1), state, 0),
                    "step": step,
                    "spec": spec,
                },
            )


def unit(x: Tensor) -> Tensor:
    """`x` over the length of its last dimension."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + KEY_EPS)


def delta_inputs(
    qkv: Tensor, gates: Tensor, weights: DeltaWeights, spec: DeltaSpec
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Queries and keys (tokens, value_heads, key_dim) of length 1, queries scaled; values; learning rates and
    logarithms of decay (tokens, value_heads). All float32.
    """
    q, k, v = torch.split(qkv.float(), spec.widths, dim=-1)
    each = spec.value_heads // spec.key_heads
    q, k = (unit(x.reshape(len(x), spec.key_heads, -1)).repeat_interleave(each, dim=1) for x in (q, k))
    rate, slack = torch.split(gates.float(), spec.value_heads, dim=-1)
    decay = -weights.a_log.exp() * F.softplus(slack + weights.dt_bias)
    return q * spec.key_dim**-0.5, k, v.reshape(len(v), spec.value_heads, -1), rate.sigmoid(), decay


@op(
    samples=_samples,
    tolerance=DEFAULT_TOLERANCE | CHUNKED,
    capturable=False,
)
def gated_delta_rule(
    qkv: Tensor, gates: Tensor, weights: DeltaWeights, pages: StatePages, step: StepInputs, spec: DeltaSpec
) -> Tensor:
    """Token by token: S = exp(decay) * S; S = S + k (rate * (v - S'k))'; the result is S'q. In float32.

    Begins with the states in `pages.state` and leaves the last ones there.

    Args:
        qkv: (tokens, sum(spec.widths)), after the convolution; queries and keys are not yet normed.
        gates: (tokens, 2 * value_heads), learning rates before the sigmoid, then what decay is made of; rows may lie
            apart.

    Returns: (tokens, value_heads * value_dim) in the dtype of `qkv`.
    """
    q, k, v, rate, decay = delta_inputs(qkv, gates, weights, spec)
    out = torch.empty_like(v)
    for tokens, begin, end in visits(step, pages.group):
        state = torch.zeros_like(pages.state[0]) if begin is None else pages.state[begin]
        for t in range(tokens.start, tokens.stop):
            state = state * decay[t].exp()[:, None, None]
            known = torch.einsum("hkv,hk->hv", state, k[t])
            state = state + torch.einsum("hk,hv->hkv", k[t], rate[t][:, None] * (v[t] - known))
            out[t] = torch.einsum("hkv,hk->hv", state, q[t])
        pages.state[end] = state
    return out.flatten(1).to(qkv.dtype)
