"""`longest_hit`: how much of a prompt the cache already holds, for any mixture of retention rules.

One rule serves full attention, windows, chunks and recurrent state: a prefix of n tokens may be reused when every
group still has every page that it needs to go on after n. Pure function, called by the `pages` resource.
"""

from dataclasses import dataclass, field
from itertools import accumulate
from math import lcm
from typing import NamedTuple

from quire.kvcache.retention import first_page, sink_pages
from quire.messages.state import Retention


class GroupHits(NamedTuple):
    """One cache group's view of a prompt: its rule, and per full page whether it is cached."""

    rule: Retention
    page_size: int
    cached: list[bool]


@dataclass(slots=True)
class Hit:
    """A prefix found in the cache.

    Attributes:
        tokens: its length.
        pages: per group by position; 0 where none is needed.
        beyond: its length if recurrent state were kept everywhere: others may begin alike up to there.
    """

    tokens: int = 0
    pages: list[list[int]] = field(default_factory=list)
    beyond: int = 0


def longest_hit(groups: list[GroupHits], limit: int) -> int:
    """The longest reusable prefix in tokens, at most `limit`; a multiple of every group's page size.

    Per group one pass builds, for each page, how many cached pages end there; then every candidate is answered in
    O(1) per group, longest first.
    """
    step = lcm(*(group.page_size for group in groups))
    runs = [_runs(group.cached) for group in groups]
    for tokens in range(limit // step * step, 0, -step):
        if all(_holds(group, run, tokens) for group, run in zip(groups, runs, strict=True)):
            return tokens
    return 0


def _runs(cached: list[bool]) -> list[int]:
    """For each page the number of consecutive cached pages that end with it."""
    return list(accumulate(cached, lambda run, hit: run + 1 if hit else 0, initial=0))[1:]


def _holds(group: GroupHits, run: list[int], tokens: int) -> bool:
    rule, size, _ = group
    sinks = sink_pages(rule, tokens, size)
    if sinks and (sinks > len(run) or run[sinks - 1] < sinks):
        return False
    pages, first = tokens // size, first_page(rule, tokens, size)
    return first >= pages or (pages <= len(run) and run[pages - 1] >= pages - first)
