"""Which tokens a draw may choose from: top_k, top_p, min_p, as the reference of the op `draw_tokens` has it.

Candidates are in order of their logits, equal ones by id, so that every cut is exact: top_k=5 keeps five tokens,
whatever ties. Masses are integers, so that no order of summing changes what top_p keeps. The sort here is the
definition that kernels must equal.
"""

import torch
from torch import Tensor

MASS_BITS = 40
"""The most probable token has the mass 2**40; 2**22 such tokens fit in 63 bits."""

_LOW32 = 0xFFFFFFFF
_ALL = 2**63 - 1


def ordered_keys(x: Tensor) -> Tensor:
    """Keys whose order is that of the logits, equal ones by id (lower first), and no two of which are equal.

    Args:
        x: (n, vocab) float32.

    Returns:
        (n, vocab) int64; larger is more probable. The low 32 bits hold vocab - 1 - id.
    """
    # Adding 0 turns -0.0 into 0.0. Flipping the bits of negative floats makes the integer order the float order.
    raw = (x + 0.0).view(torch.int32)
    raw ^= (raw >> 31) & 0x7FFFFFFF
    vocab = x.shape[-1]
    return raw.long().bitwise_left_shift_(32).bitwise_or_(torch.arange(vocab - 1, -1, -1, device=x.device))


def candidates(x: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The `width` most probable tokens of each row, in order.

    Args:
        x: (n, vocab) float32.
        width: at most vocab; all of it sorts the row.

    Returns:
        Logits (n, width) float32 and ids (n, width) int64.
    """
    keys = ordered_keys(x)
    if width < x.shape[-1]:
        keys = keys.topk(width, dim=-1).values
    else:
        keys = keys.sort(dim=-1, descending=True).values
    ids = (x.shape[-1] - 1) - (keys & _LOW32)
    return x.gather(1, ids), ids


def drop_improbable(x: Tensor, log_min_p: Tensor) -> Tensor:
    """min_p: -inf for tokens less probable than min_p times the most probable one, in place.

    Args:
        x: (n, vocab) float32, maximum 0.
        log_min_p: (n, 1) float32; -inf drops nothing.
    """
    # Dividing by 0 makes -inf of a negative number; the maximum is 0, but it is kept and divided by 1.
    return x.div_(torch.ge(x, log_min_p, out=torch.empty_like(x)))


def mass(x: Tensor) -> Tensor:
    """The probability of tokens relative to the most probable one, in units of 2**-40. x: float32, at most 0. int64."""
    return x.exp().mul_(2.0**MASS_BITS).long()


def kept(values: Tensor, top_k: Tensor, top_p: Tensor, total: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Which candidates remain: the first top_k, and of those the smallest set that holds top_p of their mass.

    Args:
        values: (n, width) float32, candidates in order, maximum 0.
        top_k: (n, 1) int64, at least 1.
        top_p: (n, 1) float32 in [0, 1]; 1 keeps all.
        total: (n, 1) int64, mass of the whole row where that is what top_p refers to (no top_k); None takes the mass of
            the first top_k candidates, all of which must be here.

    Returns:
        (n, width) bool, and (n,) bool: whether the set is complete, that is, ends within these candidates.
    """
    each = mass(values)
    sums = each.cumsum(-1)
    width = values.shape[-1]
    if total is None:
        total = sums.gather(1, (top_k - 1).clamp_(max=width - 1))
    # At least 1: the most probable token always remains.
    wanted = (top_p.double() * total.double()).ceil().long().clamp_(min=1).masked_fill_(top_p >= 1, _ALL)
    mask = (sums - each < wanted) & (torch.arange(width, device=values.device) < top_k)
    return mask, (sums[:, -1:] >= wanted).squeeze(1)
