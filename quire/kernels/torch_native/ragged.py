"""Attention of encoders by torch's own operator: one call for all sequences of one length."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.ops.ragged import RaggedSpec, ragged_attention
from quire.ops.registry import provide
from quire.ops.step import StepInputs


@provide("torch_native", ragged_attention, capturable=False)
def native_ragged_attention(q: Tensor, k: Tensor, v: Tensor, step: StepInputs, spec: RaggedSpec) -> Tensor:
    """See `ragged_attention`."""
    bounds = step.once("bounds of texts", step.query_start.tolist)
    if len(bounds) == 2:
        return _attend(q[None], k[None], v[None], step, spec, slice(None))[0]
    out = torch.empty_like(q)
    for texts, rows in step.once("texts by length", lambda: _by_length(bounds, q.device)):
        flat = rows.flatten()
        some = [x.index_select(0, flat).unflatten(0, rows.shape) for x in (q, k, v)]
        out.index_copy_(0, flat, _attend(some[0], some[1], some[2], step, spec, texts).flatten(0, 1))
    return out


def _by_length(bounds: list[int], device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Per length which sequences have it, (sequences,) int64, and their tokens, (sequences, length) int64."""
    alike: dict[int, list[int]] = {}
    for text, (a, b) in enumerate(pairwise(bounds)):
        alike.setdefault(b - a, []).append(text)
    starts = torch.tensor(bounds)
    found = [(torch.tensor(texts), length) for length, texts in alike.items() if length]
    return [(texts.to(device), (starts[texts][:, None] + torch.arange(length)).to(device)) for texts, length in found]


def _attend(q: Tensor, k: Tensor, v: Tensor, step: StepInputs, spec: RaggedSpec, texts: Tensor | slice) -> Tensor:
    """Sequences of one length, `texts` of the step: (n, length, heads, head_dim) each, and so is the result."""
    length, reach = q.shape[1], spec.reach
    seen = None
    if reach is not None and reach < length - 1:
        seen = step.once(("reach", reach, length), lambda: _near(length, reach, q.device))
    if step.seen is not None:
        shown = torch.arange(length, device=q.device) < step.seen[texts][:, None]
        seen = shown[:, None, None] if seen is None else shown[:, None, None] & seen
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=spec.scale).transpose(1, 2)


def _near(length: int, reach: int, device: torch.device) -> Tensor:
    """(length, length) bool: which tokens see which."""
    place = torch.arange(length, device=device)
    return (place - place[:, None]).abs() <= reach
