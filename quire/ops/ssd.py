"""The scan of Mamba 2: a state that decays by a factor of each token and to which each token adds.

Dao, Gu, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space Duality",
2024.
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


@dataclass(frozen=True, slots=True)
class ScanSpec:
    """One layer's scan, as this rank computes it. Neighbouring heads share a group's inputs and outputs.

    `pages.state` is (pages, heads, head_dim, state).

    Attributes:
        groups: pairs of what writes to states (B) and what reads them (C).
        state: values that a state has for each value of a head.
        shortest, longest: bounds of a token's time step.
    """

    heads: int
    groups: int
    head_dim: int
    state: int
    shortest: float = 0.0
    longest: float = float("inf")
    dtype: str = "float32"
    device: str = "cpu"

    @property
    def widths(self) -> list[int]:
        """Values of a token: of all heads, then what writes and what reads."""
        return [self.heads * self.head_dim, self.groups * self.state, self.groups * self.state]


@dataclass(frozen=True, slots=True)
class ScanWeights:
    """(heads,) float32 each.

    Attributes:
        a_log: logarithm of how fast states decay.
        skip: what a head's inputs are multiplied with beside the state.
        dt_bias: added to time steps.
    """

    a_log: Tensor
    skip: Tensor
    dt_bias: Tensor


def _samples() -> Iterator[tuple[ScanSpec, dict[str, Any]]]:
    for dtype in FLOATS:
        for queries, lengths, page_size in STEPS:
            spec = ScanSpec(4, 2, 16, 32, 0.01, dtype=dtype) if page_size == 4 else ScanSpec(2, 1, 32, 16, dtype=dtype)
            step, pages = state_step(queries, lengths, page_size)
            heads, tokens = spec.heads, sum(queries)
            weights = ScanWeights(*(normal("float32", heads, seed=seed) for seed in (2, 4, 5)))
            state = normal("float32", pages, heads, spec.head_dim, spec.state, seed=3)
            yield (
                spec,
                {
                    "xbc": normal(dtype, tokens, sum(spec.widths)) * 0.3,
                    "dt": normal(dtype, tokens, heads + 8, seed=1)[:, 8:],
                    "weights": weights,
                    "pages": StatePages(torch.zeros(pages, 1, 1), state, 0),
                    "step": step,
                    "spec": spec,
                },
            )


def scan_inputs(
    xbc: Tensor, dt: Tensor, weights: ScanWeights, spec: ScanSpec
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Values (tokens, heads, head_dim), writers and readers (tokens, heads, state), time steps and logarithms of decay
    (tokens, heads). All float32.
    """
    x, b, c = torch.split(xbc.float(), spec.widths, dim=-1)
    each = spec.heads // spec.groups
    b, c = (y.reshape(len(y), spec.groups, -1).repeat_interleave(each, dim=1) for y in (b, c))
    time = F.softplus(dt.float() + weights.dt_bias).clamp(spec.shortest, spec.longest)
    return x.reshape(len(x), spec.heads, -1), b, c, time, -weights.a_log.exp() * time


@op(
    samples=_samples,
    tolerance=DEFAULT_TOLERANCE | CHUNKED,
    capturable=False,
)
def ssd_scan(
    xbc: Tensor, dt: Tensor, weights: ScanWeights, pages: StatePages, step: StepInputs, spec: ScanSpec
) -> Tensor:
    """Token by token: S = exp(decay) * S + time * x B'; the result is S C + skip * x. In float32.

    Begins with the states in `pages.state` and leaves the last ones there.

    Args:
        xbc: (tokens, sum(spec.widths)), after the convolution.
        dt: (tokens, heads), before its bias; rows may lie apart.

    Returns: (tokens, heads * head_dim) in the dtype of `xbc`.
    """
    x, b, c, time, decay = scan_inputs(xbc, dt, weights, spec)
    out = torch.empty_like(x)
    for tokens, begin, end in visits(step, pages.group):
        state = torch.zeros_like(pages.state[0]) if begin is None else pages.state[begin]
        for t in range(tokens.start, tokens.stop):
            added = torch.einsum("hp,hn->hpn", time[t][:, None] * x[t], b[t])
            state = state * decay[t].exp()[:, None, None] + added
            out[t] = torch.einsum("hpn,hn->hp", state, c[t])
        pages.state[end] = state
    return (out + weights.skip[:, None] * x).flatten(1).to(xbc.dtype)
