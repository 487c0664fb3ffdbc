"""How a batch is worked off: which rows need what, in slices that bound memory.

Pure host knowledge, made once per composition of a batch and kept while it does not change. Called by the sampler.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quire.sampling.rows import Feature, HostRow

SLICE_ROWS = 256
"""Most rows of logits worked on at once."""

SLICE_ENTRIES = 1 << 24
"""Most logits worked on at once: with 150,000 tokens a slice has 110 rows."""

_RESTRICTED = Feature.SHORT | Feature.NUCLEUS | Feature.SORTED


@dataclass(frozen=True, slots=True)
class Group:
    """Random rows of a slice that draw alike: lines of the slice (g,) int64 or None for all, and the largest top_k."""

    at: Tensor | None
    kind: Feature
    width: int


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows that are worked on together.

    Attributes:
        lines: lines of the batch, for the host.
        at: the same on the device, (m,) int64; None for the whole batch.
        features: what any of them needs.
        groups: those that draw at random, by how they do it; the others are greedy.
        all_random: whether no row is greedy.
    """

    lines: list[int]
    at: Tensor | None
    features: Feature
    groups: tuple[Group, ...]
    all_random: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch, planned.

    Attributes:
        rows: the composition that this was made for.
        greedy: whether some row needs only an arg-max.
        slices: all other rows.
        reported: lines that want log-probabilities, with their numbers, in slices.
        counted: lines whose penalty counts grow with each token, (c,) int64 on the device; None if there are none.
    """

    rows: list[int]
    greedy: bool
    slices: tuple[Slice, ...]
    reported: tuple[tuple[list[int], list[int]], ...]
    counted: Tensor | None

    @property
    def plain(self) -> bool:
        """Whether every row needs the arg-max of its logits and nothing else."""
        return not self.slices and not self.reported and self.counted is None


def slice_rows(vocab: int) -> int:
    """Rows of a slice."""
    return max(1, min(SLICE_ROWS, SLICE_ENTRIES // vocab))


def make(rows: list[int], hosts: list[HostRow], vocab: int, device: torch.device) -> Batch:
    """Plan a batch. hosts: what is known of each of `rows`."""
    size = slice_rows(vocab)
    # Rows that only draw do not pay for those whose logits are edited.
    edited = [i for i, h in enumerate(hosts) if h.edited]
    drawn = [i for i, h in enumerate(hosts) if h.random and not h.edited]
    slices = [_make_slice(part, hosts, device) for lines in (edited, drawn) for part in _cut(lines, size)]
    asked = [i for i, h in enumerate(hosts) if h.logprobs is not None]
    reported = [(part, [hosts[i].logprobs or 0 for i in part]) for part in _cut(asked, size)]
    counted = [i for i, h in enumerate(hosts) if h.counted]
    return Batch(
        rows=list(rows),
        greedy=len(edited) + len(drawn) < len(rows),
        slices=tuple(slices),
        reported=tuple(reported),
        counted=torch.tensor(counted, device=device) if counted else None,
    )


def _cut(lines: list[int], size: int) -> list[list[int]]:
    return [lines[i : i + size] for i in range(0, len(lines), size)]


def _make_slice(lines: list[int], hosts: list[HostRow], device: torch.device) -> Slice:
    mine = [hosts[i] for i in lines]
    features = Feature(0)
    for distinct in {host.features.value: host.features for host in mine}.values():
        features |= distinct
    return Slice(
        lines=lines,
        at=None if len(lines) == len(hosts) else torch.tensor(lines, device=device),
        features=features,
        groups=_groups(mine, device),
        all_random=all(host.random for host in mine),
    )


def _groups(hosts: list[HostRow], device: torch.device) -> tuple[Group, ...]:
    by_features: dict[int, list[int]] = {}
    for i, host in enumerate(hosts):
        if host.random:
            by_features.setdefault(host.features.value, []).append(i)
    by_kind: dict[Feature, list[int]] = {}
    for lines in by_features.values():
        by_kind.setdefault(_kind(hosts[lines[0]], device), []).extend(lines)
    return tuple(
        Group(
            at=None if len(lines) == len(hosts) else torch.tensor(lines, device=device),
            kind=kind,
            width=max(hosts[i].top_k for i in lines),
        )
        for kind, lines in by_kind.items()
    )


def _kind(host: HostRow, device: torch.device) -> Feature:
    kind = host.features & _RESTRICTED
    # Whether a short list of candidates holds the nucleus must be read back. On a CPU the answer is already there; on
    # an accelerator reading it would stall the launches, so the whole row is sorted.
    return Feature.SORTED if kind == Feature.NUCLEUS and device.type != "cpu" else kind
