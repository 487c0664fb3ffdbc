"""Attention over latents by gathering: absorbed for sequences that compute one token, expanded for longer chunks.

Absorbed, a token's latent is read once for all heads and no key or value is ever made; expanded, arithmetic on chunks
takes heads of their own size instead of the latent's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.ops.attention import KVPages
from quire.ops.latent import LatentSpec, latent_attention
from quire.ops.narrow import raw, widened
from quire.ops.registry import provide
from quire.ops.step import StepInputs


@provide("torch_native", latent_attention, capturable=False)
def native_latent_attention(q: Tensor, up: Tensor, pages: KVPages, step: StepInputs, spec: LatentSpec) -> Tensor:
    """See `latent_attention`."""
    if step.max_query == 1:
        return _absorbed(q, None, up, pages, step, spec)
    bounds, lengths = step.once("bounds", lambda: (step.query_start.tolist(), step.seq_lens.tolist()))
    out = torch.empty(len(q), spec.heads * spec.value, dtype=q.dtype, device=q.device)
    singles = [i for i in range(len(lengths)) if bounds[i + 1] - bounds[i] == 1]
    if singles:
        rows, tokens = (torch.tensor(x, device=q.device) for x in (singles, [bounds[i] for i in singles]))
        out[tokens] = _absorbed(q[tokens], rows, up, pages, step, spec)
    for i, length in enumerate(lengths):
        a, b = bounds[i], bounds[i + 1]
        if b - a > 1:
            out[a:b] = _expanded(q[a:b], (i, length), up, pages, step, spec) if length else 0
    return out


def _absorbed(q: Tensor, rows: Tensor | None, up: Tensor, pages: KVPages, step: StepInputs, spec: LatentSpec) -> Tensor:
    """One query per sequence, for the sequences `rows` (None: all). q (n, heads, plain + turned)."""

    def gather() -> tuple[Tensor, Tensor, Tensor]:
        group = step.groups[pages.group]
        table, lengths = group.page_table.long(), step.seq_lens.long()[:, None]
        if rows is not None:
            table, lengths = table[rows], lengths[rows]
        wanted = torch.arange(step.max_seq, device=q.device).expand(len(table), -1)
        mask = torch.zeros(wanted.shape, device=q.device).masked_fill_(wanted >= lengths, float("-inf"))
        # Short rows read their own last token again: what lies beyond may be NaN, which no weight of 0 can undo.
        at = torch.minimum(wanted, lengths - 1).clamp(min=0)
        slots = table.gather(1, at // group.page_size) * group.page_size + at % group.page_size
        return slots, mask[:, None], (lengths == 0)[..., None]

    slots, mask, padding = step.once(("latent gather", pages.group, rows is None), gather)
    latents, keys = _read(pages, slots.flatten(), q.dtype)
    latents, keys = latents.view(*slots.shape, -1), keys.view(*slots.shape, -1)
    plain, turned = q.split([spec.plain, spec.turned], dim=-1)
    inner = torch.einsum("nhd,hdr->nhr", plain, up[:, : spec.plain])
    scores = (inner @ latents.transpose(1, 2)).float() + (turned @ keys.transpose(1, 2)).float()
    weights = scores.mul_(spec.scale).add_(mask).softmax(dim=-1).to(q.dtype)
    out = torch.einsum("nhr,hvr->nhv", weights @ latents, up[:, spec.plain :])
    return out.masked_fill(padding, 0).flatten(1)


def _expanded(
    q: Tensor, which: tuple[int, int], up: Tensor, pages: KVPages, step: StepInputs, spec: LatentSpec
) -> Tensor:
    """Several queries of a sequence: `which`, and how many tokens it has with them. q (queries, heads, ...)."""
    i, length = which
    group, n = step.groups[pages.group], len(q)
    kept = torch.arange(length, device=q.device)
    slots = group.page_table[i].long()[kept // group.page_size] * group.page_size + kept % group.page_size
    latents, shared = _read(pages, slots, q.dtype)
    made = torch.einsum("kr,hdr->hkd", latents, up)
    keys = torch.cat([made[..., : spec.plain], shared.expand(spec.heads, -1, -1)], dim=-1)
    seen = None if n == length else kept <= kept[length - n :, None]
    values = made[..., spec.plain :]
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1), keys, values, attn_mask=seen, is_causal=seen is None, scale=spec.scale
    )
    return out.transpose(0, 1).flatten(1)


def _read(pages: KVPages, slots: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Latents (slots, rank) and rotated keys (slots, turned)."""
    latents, keys = (
        widened(raw(pool).flatten(0, 2).index_select(0, slots).view(pool.dtype), dtype, scale)
        for pool, scale in ((pages.k, pages.k_scale), (pages.v, pages.v_scale))
    )
    return latents, keys
