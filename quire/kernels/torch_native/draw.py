"""Random tokens with torch's operators, by groups of rows that draw alike.

Logits are read through the maxima of blocks of tokens: blocks that cannot hold the token are left alone. On a CPU rows
that need more than a few candidates are worked on one by one: a row of a large vocabulary fits the cache where a batch
of them does not, and there nothing is lost by asking what a row needs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quire.ops.draw import LOG_MIN_P, SEED, TEMPERATURE, TOP_K, TOP_P, Group, Kind, RowTable, draw_tokens, scaled
from quire.ops.noise import bits, log_exponential, log_exponential_of, row_keys
from quire.ops.registry import provide
from quire.ops.topk import candidates, drop_improbable, kept, mass, ordered_keys

BLOCK = 64
"""Tokens of a block."""

FIRST = 32
"""Candidates looked at first for a nucleus, and blocks looked at first for the best token; four times as many then."""

BINS, BINS_PER_UNIT = 1024, 32.0
"""Of the histogram that finds where a long nucleus ends."""


@dataclass(frozen=True, slots=True)
class _Lines:
    """Lines to draw from.

    Attributes:
        x: (n, vocab) float32 logits.
        blocks: (n, blocks) float32, maxima of their blocks.
        top: (n, 1) float32, their maxima.
        numbers, integers: (n, columns), their settings.
        keys: of their noise, each (n, 1).
    """

    x: Tensor
    blocks: Tensor
    top: Tensor
    numbers: Tensor
    integers: Tensor
    keys: tuple[Tensor, Tensor]

    def pick(self, at: Tensor | slice) -> "_Lines":
        """Some of them: (m,) int64, or a slice, which copies nothing."""
        keys = (self.keys[0][at], self.keys[1][at])
        return _Lines(self.x[at], self.blocks[at], self.top[at], self.numbers[at], self.integers[at], keys)

    def scaled(self, x: Tensor, min_p: bool = True) -> Tensor:
        """(n, m) logits over temperature with the maximum at 0; -inf where min_p drops them."""
        s = scaled(x, self.top, self.numbers[:, TEMPERATURE, None])
        return drop_improbable(s, self.numbers[:, LOG_MIN_P, None]) if min_p else s


@provide("torch_native", draw_tokens, capturable=False)
def native_draw_tokens(
    logits: Tensor, rows: Tensor, known: Tensor, table: RowTable, groups: tuple[Group, ...] | None = None
) -> Tensor:
    """See `draw_tokens`. Where there are `groups`, lines of none are greedy."""
    if groups is None:
        drawn: Tensor = draw_tokens(logits, rows, known, table)
        return drawn
    x = logits.float()
    blocks = _by_block(x, -torch.inf).amax(-1)
    top, best = blocks.max(-1, keepdim=True)
    bad = ~top.isfinite().squeeze(1)
    ids, values = _read(x, best)
    tokens = ids.gather(1, values.argmax(-1, keepdim=True)).squeeze(1)
    integers = table.integers[rows]
    keys = row_keys(integers[:, SEED], known[rows].long())
    every = _Lines(x, blocks, top, table.numbers[rows], integers, keys)
    for group in groups:
        if group.at is None:
            tokens = _draw(every, group)
        else:
            tokens[group.at] = _draw(every.pick(group.at), group)
    return torch.stack([tokens.masked_fill(bad, 0), bad.long()])


def _draw(lines: _Lines, group: Group) -> Tensor:
    if group.kind is Kind.SHORT:
        return _among(lines, *_candidates(lines, group.width))[0]
    if group.kind is Kind.SORTED:
        return _among(lines, *candidates(lines.x, lines.x.shape[1]))[0]
    if lines.x.device.type == "cpu":
        draw = _plain if group.kind is Kind.PLAIN else _nucleus
        singles = (lines.pick(slice(i, i + 1)) for i in range(len(lines.x)))
        return torch.tensor([draw(line, group.min_p) if line.top.isfinite() else 0 for line in singles])
    if group.kind is Kind.NUCLEUS:
        # Whether a short list holds the nucleus would have to be read back, which stalls the launches.
        return _among(lines, *candidates(lines.x, lines.x.shape[1]))[0]
    ids = torch.arange(lines.x.shape[1], dtype=torch.int32, device=lines.x.device)
    return lines.scaled(lines.x, group.min_p).sub_(log_exponential(lines.keys, ids)).argmax(-1)


def _candidates(lines: _Lines, width: int) -> tuple[Tensor, Tensor]:
    """The `width` most probable tokens in order: logits and ids, (n, width)."""
    if width * BLOCK > lines.x.shape[1] // 2:
        return candidates(lines.x, width)
    # A token among the best is in one of as many blocks of the best maxima, equal ones by their place.
    ids, values = _read(lines.x, candidates(lines.blocks, width)[1].sort(-1).values)
    values, at = candidates(values, width)
    return values, ids.gather(1, at)


def _among(lines: _Lines, values: Tensor, ids: Tensor, total: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The token among candidates in order, (n,) int64; and whether what is kept ends with them, (n,) bool."""
    s = lines.scaled(values)
    mask, complete = kept(s, lines.integers[:, TOP_K, None], lines.numbers[:, TOP_P, None], total)
    noisy = s.sub_(log_exponential(lines.keys, ids.int())).masked_fill_(~mask, -torch.inf)
    return ids.gather(1, noisy.argmax(-1, keepdim=True)).squeeze(1), complete


def _nucleus(line: _Lines, min_p: bool) -> int:
    """top_p without top_k, for one line on a CPU: most nuclei are short."""
    s = line.scaled(line.x, min_p)
    masses = mass(s)
    total = masses.sum(-1, keepdim=True)
    for width in (FIRST, 4 * FIRST):
        if width < s.shape[1]:
            token, complete = _among(line, *_candidates(line, width), total)
            if complete:
                return int(token)
    wanted = (line.numbers[:, TOP_P].double() * total.double()).ceil().long().clamp_(min=1)
    return _best(line, min_p, _last(line.x, s[0], masses[0], int(wanted)))


def _last(x: Tensor, s: Tensor, masses: Tensor, wanted: int) -> int:
    """The key, as of `ordered_keys`, of the last token with less than `wanted` before it.

    Args:
        x: (1, vocab) logits; s: (vocab,), scaled, overwritten; masses: (vocab,) int64.
    """
    bins = s.mul_(-BINS_PER_UNIT).clamp_(max=BINS - 1).int()
    sums = torch.bincount(bins, weights=masses.double(), minlength=BINS).cumsum(0)
    pivot = int(torch.searchsorted(sums, torch.tensor(wanted, dtype=torch.float64)))
    # The sums are rounded: the bin may be the one beside.
    while (before := int(masses.masked_fill(bins >= pivot, 0).sum())) >= wanted:
        pivot -= 1
    while before + (within := int(masses.masked_fill(bins != pivot, 0).sum())) < wanted:
        before, pivot = before + within, pivot + 1
    at = (bins == pivot).nonzero().squeeze(1)
    keys, order = ordered_keys(x)[0, at].sort(descending=True)
    each = masses[at[order]]
    return int(keys[(each.cumsum(0) - each + before < wanted).sum() - 1])


def _plain(line: _Lines, min_p: bool) -> int:
    """Neither top_k nor top_p, for one line on a CPU."""
    return _best(line, min_p, None)


def _best(line: _Lines, min_p: bool, last: int | None) -> int:
    """The token of one line, among those whose keys are at least `last`.

    A block's best logit with its best noise bounds its tokens; blocks are looked at while their bounds are higher.
    """
    vocab = line.x.shape[1]
    drawn = bits(line.keys, torch.arange(vocab, dtype=torch.int32))
    noise = log_exponential_of(_by_block(drawn, torch.iinfo(torch.int32).max).amin(-1))
    bounds = line.scaled(line.blocks, min_p).sub_(noise)[0]
    count = FIRST
    while True:
        count = min(count, len(bounds))
        highest = bounds.topk(min(count + 1, len(bounds)))
        ids, x = _read(line.x, highest.indices[:count].sort().values.unsqueeze(0))
        noisy = line.scaled(x, min_p).sub_(log_exponential_of(drawn.gather(1, ids)))
        if last is not None:
            noisy.masked_fill_(_keys(x, ids, vocab) < last, -torch.inf)
        best = noisy.argmax()
        # Rounding moves a bound by less than this.
        if count == len(bounds) or highest.values[count] + 1e-3 < noisy[0, best]:
            return int(ids[0, best])
        count *= 4


def _by_block(x: Tensor, fill: float) -> Tensor:
    """(n, vocab) to (n, blocks, BLOCK), the last one filled up."""
    rest = -x.shape[1] % BLOCK
    blocks: Tensor = torch.nn.functional.pad(x, (0, rest), value=fill) if rest else x
    return blocks.view(len(x), -1, BLOCK)


def _read(x: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and logits of the tokens of `blocks`, (n, b) int64: (n, b * BLOCK). Behind the last token -inf."""
    ids = (blocks.unsqueeze(2) * BLOCK + torch.arange(BLOCK, device=blocks.device)).flatten(1)
    there = ids.clamp(max=x.shape[1] - 1)
    return there, x.gather(1, there).masked_fill_(ids != there, -torch.inf)


def _keys(x: Tensor, ids: Tensor, vocab: int) -> Tensor:
    """As `ordered_keys`, of some tokens of a row."""
    places = torch.arange(x.shape[1] - 1, -1, -1, device=x.device)
    return ordered_keys(x) - places + (vocab - 1 - ids)
