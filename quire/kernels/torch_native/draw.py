"""Random tokens with torch's operators: by group, each with no more work than its settings ask for.

Few candidates are found through the maxima of blocks of tokens, so that most of a row is read once. Rows of a group are
worked on in full width only where noise or mass of the whole row is needed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quire.ops.draw import LOG_MIN_P, SEED, TEMPERATURE, TOP_K, TOP_P, Group, Kind, RowTable, draw_tokens, scaled
from quire.ops.noise import log_exponential, row_keys
from quire.ops.registry import provide
from quire.ops.topk import candidates, drop_improbable, kept, mass

NUCLEUS_WIDTH = 256
"""Candidates among which a nucleus is looked for before the whole row is sorted."""


@dataclass(frozen=True, slots=True)
class _Lines:
    """Lines to draw from: logits (n, vocab), their maximum (n, 1), numbers (n, 6, 1), integers (n, 2), noise keys."""

    logits: Tensor
    top: Tensor
    numbers: Tensor
    integers: Tensor
    keys: tuple[Tensor, Tensor]

    def pick(self, at: Tensor) -> "_Lines":
        """The lines `at`, (m,) int64."""
        keys = (self.keys[0][at], self.keys[1][at])
        return _Lines(self.logits[at], self.top[at], self.numbers[at], self.integers[at], keys)


@provide("torch_native", draw_tokens, capturable=False)
def native_draw_tokens(
    logits: Tensor, rows: Tensor, known: Tensor, table: RowTable, groups: tuple[Group, ...] | None = None
) -> Tensor:
    """See `draw_tokens`. Lines of no group are greedy."""
    if groups is None:
        drawn: Tensor = draw_tokens(logits, rows, known, table)
        return drawn
    top, tokens = logits.max(-1)
    bad = ~top.isfinite()
    integers = table.integers[rows]
    keys = row_keys(integers[:, SEED], known[rows].long())
    every = _Lines(logits, top.float().unsqueeze(1), table.numbers[rows].unsqueeze(2), integers, keys)
    for group in groups:
        lines = every if group.at is None else every.pick(group.at)
        drawn = _draw(lines, group)
        if group.at is None:
            tokens = drawn
        else:
            tokens[group.at] = drawn
    return torch.stack([tokens.masked_fill(bad, 0), bad.long()])


def _draw(lines: _Lines, group: Group) -> Tensor:
    if group.kind is Kind.PLAIN:
        return _plain(lines, group.min_p)
    if group.kind is Kind.SHORT:
        return _among(lines, group.width)
    if group.kind is Kind.NUCLEUS:
        return _nucleus(lines, group.min_p)
    return _among(lines, lines.logits.shape[1])


def _plain(lines: _Lines, min_p: bool) -> Tensor:
    x = _scaled(lines, lines.logits.float())
    if min_p:
        drop_improbable(x, lines.numbers[:, LOG_MIN_P])
    ids = torch.arange(x.shape[1], dtype=torch.int32, device=x.device)
    return x.sub_(log_exponential(lines.keys, ids)).argmax(-1)


def _among(lines: _Lines, width: int) -> Tensor:
    values, ids = candidates(lines.logits.float(), width)
    x = drop_improbable(_scaled(lines, values), lines.numbers[:, LOG_MIN_P])
    mask, _ = kept(x, lines.integers[:, TOP_K, None], lines.numbers[:, TOP_P])
    return _choose(lines, x, ids, mask)


def _nucleus(lines: _Lines, min_p: bool) -> Tensor:
    """top_p without top_k: most nuclei are short. Rows whose nucleus is longer are sorted, whatever the others are."""
    every = _scaled(lines, lines.logits.float())
    if min_p:
        drop_improbable(every, lines.numbers[:, LOG_MIN_P])
    total = mass(every).sum(-1, keepdim=True)
    values, ids = candidates(lines.logits.float(), min(NUCLEUS_WIDTH, every.shape[1]))
    x = drop_improbable(_scaled(lines, values), lines.numbers[:, LOG_MIN_P])
    mask, complete = kept(x, lines.integers[:, TOP_K, None], lines.numbers[:, TOP_P], total)
    tokens = _choose(lines, x, ids, mask)
    if not bool(complete.all()):
        longer = (~complete).nonzero().squeeze(1)
        tokens[longer] = _among(lines.pick(longer), every.shape[1])
    return tokens


def _scaled(lines: _Lines, x: Tensor) -> Tensor:
    return scaled(x, lines.top, lines.numbers[:, TEMPERATURE])


def _choose(lines: _Lines, x: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    noisy = x.sub_(log_exponential(lines.keys, ids.int()))
    best = noisy.masked_fill_(~mask, -torch.inf).argmax(-1, keepdim=True)
    return ids.gather(1, best).squeeze(1)
