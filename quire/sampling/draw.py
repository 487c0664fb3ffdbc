"""One random token per row, by the Gumbel-max trick over the tokens that top_k and top_p leave.

Because noise belongs to the token id and not to its place, drawing among sorted candidates and drawing over the whole
vocabulary give the same token. Called by the sampler with rows whose maximum is 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quire.sampling.noise import log_exponential
from quire.sampling.rows import Feature
from quire.sampling.topk import candidates, kept, row_mass

NUCLEUS_WIDTH = 256
"""Candidates among which a nucleus is looked for before the whole row is sorted."""


@dataclass(frozen=True, slots=True)
class Draw:
    """Rows to draw from: x (n, vocab) float32 scaled logits, noise keys, top_k (n, 1) int64, top_p (n, 1) float32."""

    x: Tensor
    keys: tuple[Tensor, Tensor]
    top_k: Tensor
    top_p: Tensor

    def pick(self, at: Tensor) -> "Draw":
        """The lines `at`, (m,) int64."""
        x = self.x.index_select(0, at)
        return Draw(x, (self.keys[0][at], self.keys[1][at]), self.top_k[at], self.top_p[at])


def draw(rows: Draw, kind: Feature, width: int, ids: Tensor) -> Tensor:
    """Tokens (n,) int64. May overwrite the logits.

    Args:
        rows: what to draw from.
        kind: SHORT, NUCLEUS, SORTED, or none of them for rows without top_k and top_p.
        width: for SHORT, the largest top_k.
        ids: (vocab,) int32, all token ids.
    """
    if kind == Feature.SHORT:
        return _among(rows, width)
    if kind == Feature.NUCLEUS:
        return _nucleus(rows)
    if kind == Feature.SORTED:
        return _among(rows, rows.x.shape[1])
    return rows.x.sub_(log_exponential(rows.keys, ids)).argmax(-1)


def _among(rows: Draw, width: int) -> Tensor:
    values, ids = candidates(rows.x, width)
    mask, _ = kept(values, rows.top_k, rows.top_p, None)
    return _choose(rows, values, ids, mask)


def _nucleus(rows: Draw) -> Tensor:
    """top_p without top_k: most nuclei are short. Rows whose nucleus is longer are sorted, whatever the others are."""
    width = min(NUCLEUS_WIDTH, rows.x.shape[1])
    values, ids = candidates(rows.x, width)
    mask, complete = kept(values, rows.top_k, rows.top_p, row_mass(rows.x))
    tokens = _choose(rows, values, ids, mask)
    if not bool(complete.all()):
        longer = (~complete).nonzero().squeeze(1)
        tokens[longer] = _among(rows.pick(longer), rows.x.shape[1])
    return tokens


def _choose(rows: Draw, values: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    noisy = values.sub_(log_exponential(rows.keys, ids.int()))
    best = noisy.masked_fill_(~mask, -torch.inf).argmax(-1, keepdim=True)
    return ids.gather(1, best).squeeze(1)
