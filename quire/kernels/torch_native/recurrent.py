"""Recurrences by chunks of tokens: within a chunk as products of matrices, from chunk to chunk as a state.

Steps in which every sequence computes one token are worked out for all sequences at once.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.ops.delta import DeltaSpec, DeltaWeights, delta_inputs, gated_delta_rule
from quire.ops.recurrent import ConvSpec, StatePages, StateSlots, causal_conv1d, state_slots, visits
from quire.ops.registry import provide
from quire.ops.ssd import ScanSpec, ScanWeights, scan_inputs, ssd_scan
from quire.ops.step import StepInputs

CHUNK = 64


@provide("torch_native", causal_conv1d, capturable=False)
def native_causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, pages: StatePages, step: StepInputs, spec: ConvSpec
) -> Tensor:
    """See `causal_conv1d`."""
    if step.max_query > 1:
        out: Tensor = causal_conv1d.reference(x, weight, bias, pages, step, spec)
        return out
    slots = state_slots(step, pages.group)
    seen = torch.cat([_found(pages.conv, slots), x[:, None]], dim=1)
    pages.conv[slots.end] = seen[:, 1:]
    wide = torch.einsum("nwc,cw->nc", seen.float(), weight.float())
    return F.silu(wide if bias is None else wide + bias.float()).to(x.dtype)


@provide("torch_native", gated_delta_rule, capturable=False)
def native_gated_delta_rule(
    qkv: Tensor, gates: Tensor, weights: DeltaWeights, pages: StatePages, step: StepInputs, spec: DeltaSpec
) -> Tensor:
    """See `gated_delta_rule`."""
    inputs = delta_inputs(qkv, gates, weights, spec)
    if step.max_query == 1:
        out = _delta_step(inputs, pages, state_slots(step, pages.group))
    else:
        out = _by_sequence(_delta_chunks, inputs, pages, step, spec.value_dim)
    return out.flatten(1).to(qkv.dtype)


@provide("torch_native", ssd_scan, capturable=False)
def native_ssd_scan(
    xbc: Tensor, dt: Tensor, weights: ScanWeights, pages: StatePages, step: StepInputs, spec: ScanSpec
) -> Tensor:
    """See `ssd_scan`."""
    x, b, c, time, decay = scan_inputs(xbc, dt, weights, spec)
    inputs = c, b, x * time[..., None], decay
    if step.max_query == 1:
        out = _scan_step(inputs, pages, state_slots(step, pages.group))
    else:
        out = _by_sequence(_scan_chunks, inputs, pages, step, spec.head_dim)
    return (out + weights.skip[:, None] * x).flatten(1).to(xbc.dtype)


def _found(pool: Tensor, slots: StateSlots) -> Tensor:
    """The states that sequences begin with: zeros where nothing was computed, whatever lies there."""
    fresh = slots.fresh.view(-1, *[1] * (pool.dim() - 1))
    return pool[slots.begin].masked_fill(fresh, 0)


def _delta_step(inputs: tuple[Tensor, ...], pages: StatePages, slots: StateSlots) -> Tensor:
    """One token of each sequence."""
    q, k, v, rate, decay = inputs
    state = _found(pages.state, slots) * decay.exp()[..., None, None]
    change = rate[..., None] * (v - torch.einsum("nhkv,nhk->nhv", state, k))
    state += torch.einsum("nhk,nhv->nhkv", k, change)
    pages.state[slots.end] = state
    return torch.einsum("nhkv,nhk->nhv", state, q)


def _scan_step(inputs: tuple[Tensor, ...], pages: StatePages, slots: StateSlots) -> Tensor:
    """One token of each sequence."""
    reads, writes, x, decay = inputs
    state = _found(pages.state, slots) * decay.exp()[..., None, None]
    state += torch.einsum("nhp,nhs->nhps", x, writes)
    pages.state[slots.end] = state
    return torch.einsum("nhps,nhs->nhp", state, reads)


Chunks = Callable[[tuple[Tensor, ...], Tensor], tuple[Tensor, Tensor]]
"""A sequence's inputs, (chunks, heads, CHUNK, ...) each, and its state before: results alike, and its state after."""


def _by_sequence(work: Chunks, inputs: tuple[Tensor, ...], pages: StatePages, step: StepInputs, width: int) -> Tensor:
    """All sequences, one after the other: (tokens, heads, width)."""
    out = inputs[0].new_empty(*inputs[0].shape[:2], width)
    for tokens, begin, end in visits(step, pages.group):
        state = torch.zeros_like(pages.state[0]) if begin is None else pages.state[begin]
        made, pages.state[end] = work(tuple(_chunked(x[tokens]) for x in inputs), state)
        out[tokens] = made.transpose(1, 2).flatten(0, 1)[: tokens.stop - tokens.start]
    return out


def _chunked(x: Tensor) -> Tensor:
    """(tokens, heads, ...) to (chunks, heads, CHUNK, ...). Tokens of zeros fill up: they change no state."""
    missing = -len(x) % CHUNK
    x = torch.cat([x, x.new_zeros(missing, *x.shape[1:])])
    return x.view(-1, CHUNK, *x.shape[1:]).transpose(1, 2)


def _decays(decay: Tensor) -> tuple[Tensor, Tensor]:
    """Of (chunks, heads, CHUNK) logarithms: what is left of a chunk's beginning at each token; and, token by token,
    of each earlier one (itself included): (chunks, heads, CHUNK, CHUNK).
    """
    total = decay.cumsum(-1)
    later = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=decay.device).triu(1)
    return total, (total[..., :, None] - total[..., None, :]).masked_fill(later, float("-inf")).exp()


def _delta_chunks(inputs: tuple[Tensor, ...], state: Tensor) -> tuple[Tensor, Tensor]:
    """Yang et al., "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", 2024, section 3.2:
    the corrections of a chunk solve a triangular system.
    """
    q, k, v, rate, decay = inputs
    total, left = _decays(decay)
    weighed = k * rate[..., None]
    system = (weighed @ k.mT) * left
    wanted = torch.cat([v * rate[..., None], weighed * total.exp()[..., None]], dim=-1)
    solved = torch.linalg.solve_triangular(system, wanted, upper=False, unitriangular=True)
    values, keys = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
    within, q = (q @ k.mT) * left, q * total.exp()[..., None]
    last = total[..., -1:]
    k = k * (last - total).exp()[..., None]
    out = torch.empty_like(v)
    for i, rest in enumerate(last.exp()[..., None]):
        change = values[i] - keys[i] @ state
        out[i] = q[i] @ state + within[i] @ change
        state = state * rest + k[i].mT @ change
    return out, state


def _scan_chunks(inputs: tuple[Tensor, ...], state: Tensor) -> tuple[Tensor, Tensor]:
    """Dao and Gu, section 6: a chunk's tokens as a product, what was before as a state."""
    reads, writes, x, decay = inputs
    total, left = _decays(decay)
    out = ((reads @ writes.mT) * left) @ x
    last = total[..., -1:]
    reads, writes = reads * total.exp()[..., None], writes * (last - total).exp()[..., None]
    added = x.mT @ writes
    for i, rest in enumerate(last.exp()[..., None]):
        out[i] += reads[i] @ state.mT
        state = state * rest + added[i]
    return out, state
