"""`fit`: how the memory that is left becomes pages per cache group, and how long a sequence may be then.

Pure arithmetic over what the ranks report; called once at start by the engine, after weights are loaded and the worst
step was measured.
"""

from collections.abc import Callable
from dataclasses import dataclass

from quire.base.errors import ConfigError
from quire.config.spec import RunSpec
from quire.kvcache.retention import most_held
from quire.messages.state import Capacity, GroupLayout, Layout, StateSpec

USUAL = 2048
"""Tokens of a sequence as it may be expected, where memory does not hold as many as may run."""


@dataclass(frozen=True, slots=True)
class Group:
    """Layers with equal state, before it is known how many pages they get."""

    spec: StateSpec
    layers: int
    page_size: int

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers of the group."""
        return self.spec.page_bytes(self.page_size) * self.layers

    def most_held(self, tokens: int) -> int:
        """Pages that a sequence of `tokens` tokens holds at most."""
        return most_held(self.spec.retention, tokens, self.page_size)

    def wanted(self, tokens: int) -> int:
        """Pages for each of several sequences of so many tokens; of recurrent state one more, kept for others."""
        return self.most_held(tokens) + self.spec.recurrent


def fit(spec: RunSpec, capacity: Capacity) -> Layout:
    """Cut the memory into pages.

    Layers with equal `StateSpec` form a group, in order of the first of them. `num_pages` is taken as it is, for every
    group and page 0 included; else the bytes are shared as `_share` says. A sequence of `max_model_len` tokens fits
    alone, always: `max_model_len` of the result is what was wanted, or what fits if `fit_max_model_len` is set
    (`shrunk` makes the sentence for the user).

    Raises:
        ConfigError: when not even one page fits, or less than `max_model_len` tokens and it must not shrink.
    """
    groups = _groups(capacity.states, spec.page_size)
    total = capacity.free_bytes if spec.kv_cache_memory_bytes is None else spec.kv_cache_memory_bytes
    longest = _longest(_fits(groups, spec, total), spec.max_model_len)
    if longest < min(spec.page_size, spec.max_model_len):
        raise ConfigError(_no_page(groups, spec, total))
    if longest < spec.max_model_len and not spec.fit_max_model_len:
        raise ConfigError(_too_long(groups, spec, total, longest))
    if spec.num_pages is None:
        pages = _share(groups, total, longest, spec.max_num_seqs)
    else:
        pages = [spec.num_pages] * len(groups)
    cut = [GroupLayout(g.spec, g.layers, g.page_size, n) for g, n in zip(groups, pages, strict=True)]
    return Layout(cut, longest)


def shrunk(spec: RunSpec, layout: Layout) -> str | None:
    """The sentence for the user when sequences may be less long than wanted, else None."""
    if layout.max_model_len >= spec.max_model_len:
        return None
    return (
        f"max_model_len is {layout.max_model_len} instead of {spec.max_model_len}: a longer sequence does not fit the "
        f"memory for pages; {_remedy(spec)} to make room for more"
    )


def _groups(states: list[StateSpec], page_size: int) -> list[Group]:
    return [Group(spec, states.count(spec), page_size) for spec in dict.fromkeys(states)]


def _cost(groups: list[Group], pages: list[int]) -> int:
    """Bytes of so many pages per group and page 0 of each."""
    return sum(group.page_bytes * (count + 1) for group, count in zip(groups, pages, strict=True))


def _fits(groups: list[Group], spec: RunSpec, total: int) -> Callable[[int], bool]:
    """Whether a sequence of so many tokens fits alone."""
    if spec.num_pages is not None:
        usable = spec.num_pages - 1
        return lambda tokens: all(group.most_held(tokens) <= usable for group in groups)
    return lambda tokens: _cost(groups, [group.most_held(tokens) for group in groups]) <= total


def _longest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number from 0 to `most` that fits; whatever is smaller than one that fits must fit too."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _share(groups: list[Group], total: int, longest: int, sequences: int) -> list[int]:
    """Pages per group, page 0 included: room for the same number of sequences in each.

    One sequence of the longest length fits in any case. Beyond that the groups are balanced for `sequences` sequences
    of the longest length at which so many fit: balanced for the longest sequence instead, a short window would get so
    few pages that it would admit a handful of short requests. What is then left is shared in the same proportion.

    Recurrent state costs as much for one token as for all of them, so that the sequences may not fit at any length: the
    groups are then balanced for as many as fit with USUAL tokens.
    """

    def wanted(tokens: int, several: int) -> list[int]:
        return [max(group.most_held(longest), several * group.wanted(tokens)) for group in groups]

    if any(group.spec.recurrent for group in groups):
        usual = min(longest, USUAL)
        sequences = _longest(lambda several: _cost(groups, wanted(usual, several)) <= total, sequences)
    pages = wanted(_longest(lambda tokens: _cost(groups, wanted(tokens, sequences)) <= total, longest), sequences)
    zeros = _cost(groups, [0] * len(groups))
    used = _cost(groups, pages) - zeros
    # Whole numbers: a float quotient could round up and overrun the memory.
    return [1 + count * (total - zeros) // used for count in pages]


def _no_page(groups: list[Group], spec: RunSpec, total: int) -> str:
    if spec.num_pages is not None:
        return (
            f"num_gpu_blocks_override={spec.num_pages} leaves no room for {spec.page_size} tokens (page 0 is never "
            f"used); raise it"
        )
    need = _cost(groups, [group.most_held(spec.page_size) for group in groups])
    return (
        f"the memory for pages ({_gib(total)}) does not hold one page of {spec.page_size} tokens, which takes "
        f"{_gib(need)}; {_remedy(spec)}, or lower block_size"
    )


def _too_long(groups: list[Group], spec: RunSpec, total: int, longest: int) -> str:
    if spec.num_pages is not None:
        have = f"num_gpu_blocks_override={spec.num_pages} has room for {longest}"
        return f"max_model_len={spec.max_model_len} does not fit: {have}; lower max_model_len or raise the number"
    need = _cost(groups, [group.most_held(spec.max_model_len) for group in groups])
    return (
        f"max_model_len={spec.max_model_len} needs {_gib(need)} of pages, but {_gib(total)} are free; set "
        f"max_model_len to {longest} or less, or {_remedy(spec)}"
    )


def _remedy(spec: RunSpec) -> str:
    if spec.num_pages is not None:
        return "raise num_gpu_blocks_override"
    if spec.kv_cache_memory_bytes is not None:
        return "raise kv_cache_memory_bytes"
    return f"raise {'cpu' if spec.platform.name == 'cpu' else 'gpu'}_memory_utilization (now {spec.memory_fraction:g})"


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.3g} GiB" if count >= 1 << 20 else f"{max(count, 0)} bytes"
