"""Which tokens a draw may choose from: top_k, top_p, min_p.

Works on rows of scaled logits whose maximum is 0. Candidates are in order of probability, equal ones by id, so that
every cut is exact: top_k=5 keeps five tokens, whatever ties. The sort here is the reference that kernels must equal.
"""

import torch
from torch import Tensor

_LOW32 = 0xFFFFFFFF


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
    """min_p: -inf for tokens less probable than min_p times the most probable one.

    Args:
        x: (n, vocab) float32, maximum 0.
        log_min_p: (n, 1) float32; -inf drops nothing.
    """
    # Dividing by 0 makes -inf of a negative number; the maximum is 0, but it is kept and divided by 1.
    return x.div_(torch.ge(x, log_min_p, out=torch.empty_like(x)))


def kept(values: Tensor, top_k: Tensor, top_p: Tensor, mass: Tensor | None) -> tuple[Tensor, Tensor]:
    """Which candidates remain: the first top_k, and of those the smallest set that holds top_p of their mass.

    Args:
        values: (n, width) float32, candidates in order, maximum 0.
        top_k: (n, 1) int64, at least 1.
        top_p: (n, 1) float32 in (0, 1]; 1 keeps all.
        mass: (n, 1) float32, sum of exp over the whole row where that is what top_p refers to (no top_k); None takes
            the mass of the first top_k candidates, all of which must be here.

    Returns:
        (n, width) bool, and (n,) bool: whether the set is complete, that is, ends within these candidates.
    """
    sums = values.exp().cumsum(-1)
    width = values.shape[-1]
    if mass is None:
        mass = sums.gather(1, (top_k - 1).clamp_(max=width - 1))
    wanted = torch.where(top_p < 1, top_p * mass, torch.inf)
    before = sums.roll(1, -1)
    before[:, 0] = -1.0  # the most probable token always remains
    mask = (before < wanted) & (torch.arange(width, device=values.device) < top_k)
    return mask, (sums[:, -1:] >= wanted).squeeze(1)


def row_mass(x: Tensor) -> Tensor:
    """Sum of exp over each row. x: (n, vocab) float32, maximum 0. Returns (n, 1).

    Through softmax, whose rows never depend on how many there are; torch splits a plain sum over threads when n is 1.
    """
    return x.softmax(-1).amax(-1, keepdim=True).reciprocal_()
