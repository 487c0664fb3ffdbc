"""How a batch is worked off: which rows need what, in slices that bound memory.

Pure host knowledge, made once per composition of a batch and kept while it does not change. Called by the sampler.
"""

from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property

import torch
from torch import Tensor

from quire.ops.draw import Group, Kind
from quire.sampling.rows import PENALTIES, Feature, SamplingRow
from quire.sampling.samples import LogprobRequests
from quire.sampling.sent import sent

SLICE_ROWS = 256
"""Most rows of logits worked on at once."""

SLICE_ENTRIES = 1 << 24
"""Most logits worked on at once: with 150,000 tokens a slice has 110 rows."""

ALIGNED_ROWS = 16
"""Slices begin at multiples of it, where they are longer."""

RECORDED_TOP = 20
"""Most log-probabilities beside the chosen token's that a recorded draw reports."""


class DrawMode(Enum):
    """How a batch can be drawn by its rows' tables alone, without a word from the host: what can be recorded."""

    GREEDY = auto()
    """The arg-max of each row's logits."""
    RANDOM = auto()
    """By each row's own settings, from the logits as they are."""
    EDITED = auto()
    """By its own settings, from edited logits, with log-probabilities for those who ask: all but callables."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows whose logits are edited together.

    Attributes:
        lines: lines of the batch, for the host.
        at: the same on the device, (m,) int64; None for the whole batch.
        features: what any of them needs.
        groups: those of them that draw at random, as lines of the slice; the others are greedy.
    """

    lines: list[int]
    at: Tensor | None
    features: Feature
    groups: tuple[Group, ...]


class Batch:
    """A batch, planned. What is not asked for is not worked out: a recorded draw needs none of what lies on the device.

    Attributes:
        rows: the composition that this is made for.
        asked: rows that want log-probabilities, if any do.
        draw_mode: the shortest way to draw for all of them that can be recorded; None if there is none.

    Args:
        rows: see above.
        hosts: what is known of each of them.
        vocab: width of the logits.
        device: where these come from.
    """

    def __init__(self, rows: list[int], hosts: list[SamplingRow], vocab: int, device: torch.device) -> None:
        self.rows = list(rows)
        self._hosts = hosts
        self._size = slice_rows(vocab)
        self._device = device
        self._asking = [i for i, h in enumerate(hosts) if h.logprobs is not None]
        wanted: dict[int, list[int]] = {}
        for i in self._asking:
            wanted.setdefault(hosts[i].logprobs or 0, []).append(i)
        self.asked = LogprobRequests(wanted) if wanted else None
        self.draw_mode = self._find_draw_mode()

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Rows that draw at random from logits as they are; rows neither here nor edited are greedy."""
        # Rows that only draw do not pay for those whose logits are edited.
        drawn = [(i, h) for i, h in enumerate(self._hosts) if not h.edited]
        return _groups(drawn, len(self._hosts), self._size, self._device)

    @cached_property
    def edited(self) -> tuple[Slice, ...]:
        """Rows whose logits are edited."""
        lines = [i for i, h in enumerate(self._hosts) if h.edited]
        return tuple(_make_slice(part, self._hosts, self._device) for part in _cut(lines, self._size))

    @cached_property
    def reported(self) -> tuple[Tensor | None, ...]:
        """Rows of `asked` in slices, lines on the device, (m,) int64; None for the whole batch."""
        return tuple(_on(part, len(self._hosts), self._device) for part in _cut(self._asking, self._size))

    @property
    def counted(self) -> bool:
        """Whether penalty counts of any row grow with its token."""
        return any(part.features & PENALTIES for part in self.edited)

    def _find_draw_mode(self) -> DrawMode | None:
        if any(h.processors for h in self._hosts) or (self.asked and self.asked.top > RECORDED_TOP):
            return None
        if self.asked or any(h.edited for h in self._hosts):
            return DrawMode.EDITED
        return DrawMode.GREEDY if all(h.kind is None for h in self._hosts) else DrawMode.RANDOM


def slice_rows(vocab: int) -> int:
    """Rows of a slice: many at a time, so that kernels which were compiled for one slice fit where the next begins."""
    rows = max(1, min(SLICE_ROWS, SLICE_ENTRIES // vocab))
    return rows - rows % ALIGNED_ROWS or rows


def _cut(lines: list[int], size: int) -> list[list[int]]:
    return [lines[i : i + size] for i in range(0, len(lines), size)]


def _on(lines: list[int], total: int, device: torch.device) -> Tensor | None:
    return None if len(lines) == total else sent(torch.tensor(lines), device)


def _make_slice(lines: list[int], hosts: list[SamplingRow], device: torch.device) -> Slice:
    mine = [hosts[i] for i in lines]
    features = Feature(0)
    for distinct in {host.features.value: host.features for host in mine}.values():
        features |= distinct
    return Slice(
        lines=lines,
        at=_on(lines, len(hosts), device),
        features=features,
        groups=_groups(list(enumerate(mine)), len(mine), len(mine), device),
    )


def _groups(hosts: list[tuple[int, SamplingRow]], total: int, size: int, device: torch.device) -> tuple[Group, ...]:
    """Those of `hosts`, with their lines, that draw at random, `size` at a time; None as lines are all `total`."""
    by_kind: dict[Kind, list[tuple[int, SamplingRow]]] = {}
    for line, host in hosts:
        if host.kind is not None:
            by_kind.setdefault(_kind(host.kind, device), []).append((line, host))
    return tuple(
        Group(
            at=_on([line for line, _ in part], total, device),
            kind=kind,
            width=max(host.top_k for _, host in part),
            min_p=any(host.min_p for _, host in part),
        )
        for kind, members in by_kind.items()
        for part in (members[i : i + size] for i in range(0, len(members), size))
    )


def _kind(kind: Kind, device: torch.device) -> Kind:
    # Whether a short list of candidates holds the nucleus must be read back. On a CPU the answer is already there; on
    # an accelerator reading it would stall the launches, so the whole row is sorted.
    return Kind.SORTED if kind is Kind.NUCLEUS and device.type != "cpu" else kind
