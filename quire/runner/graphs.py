"""Decode steps recorded once and replayed: one launch instead of hundreds.

A recorded step covers a fixed number of rows, each computing one token; a smaller batch is padded with a dummy row
whose page table names page 0, so that no kernel knows of padding. Everything it reads lies in tensors that stay where
they are. Called by the runner; on devices without graphs a recording is the function itself, which is how CPUs test it.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

Play = Callable[[], None]


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """What is recorded runs on it: one for all recordings, since libraries keep memory for each stream."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class Recorder:
    """Records functions as CUDA graphs (HIP graphs on ROCm) that share one memory pool.

    Attributes:
        records: whether it does.

    Args:
        device: with a type other than cuda nothing is recorded: playing runs the function.
        rehearses: nothing is recorded either.
    """

    def __init__(self, device: torch.device, rehearses: bool = False) -> None:
        self.records = device.type == "cuda" and not rehearses
        self._pool = torch.cuda.graph_pool_handle() if self.records else None
        self._stream = _stream(device) if self.records else None
        self._run: set[str] = set()

    def record(self, kind: str, work: Play) -> Play:
        """`work` as something to play again and again. It must read and write only tensors that stay where they are.

        The first of a `kind`, the largest, also runs: what kernels make once, they make outside of recordings.
        """
        if self._stream is None or kind not in self._run:
            self._run.add(kind)
            work()
        if self._stream is None:
            return work
        graph = torch.cuda.CUDAGraph()
        # Not by torch.cuda.graph, which gives back all memory that torch keeps, each time. Relaxed, since what was
        # compiled for other sizes is loaded while it is recorded.
        with torch.cuda.stream(self._stream):
            graph.capture_begin(self._pool, capture_error_mode="relaxed")
            try:
                work()
            except BaseException:
                # A broken recording cannot be ended in peace; what broke it is what counts.
                with suppress(RuntimeError):
                    graph.capture_end()
                raise
            graph.capture_end()
        return graph.replay


SHARING_LEAST = 4
"""Rows in the smallest batch that is also recorded with kernels which read beginnings that rows share once for all.
Larger ones are where their number is a power of two, and the largest."""


@dataclass(frozen=True, slots=True)
class DecodeWork:
    """What is recorded, of rows `order`, (n,) int64.

    Attributes:
        forward: computes one token of each row and returns hidden states, (n, hidden); whether rows may begin alike.
        greedy: draws each row's most probable token from them: (2, n) int64, as the op `greedy_sample` gives it.
        random: draws a token by the row's own settings, likewise; None if that cannot be recorded.
        shares: whether rows can ever begin alike.
    """

    forward: Callable[[Tensor, bool], Tensor]
    greedy: Callable[[Tensor, Tensor], Tensor]
    random: Callable[[Tensor, Tensor], Tensor] | None
    shares: bool


class DecodeGraphs:
    """Recorded decode steps by number of rows. Model and sampling are recordings of their own: not all rows are greedy.

    Args:
        sizes: numbers of rows, ascending; none turns recording off.
        work: what is recorded.
        dummy_row: what pads a batch.
        device: of the rows.
    """

    def __init__(self, sizes: Sequence[int], work: DecodeWork, dummy_row: int, device: torch.device) -> None:
        self.sizes = list(sizes)
        self._work = work
        self._dummy_row = dummy_row
        self._order = torch.full((max(sizes, default=0),), dummy_row, dtype=torch.int64, device=device)
        self._drawn = torch.zeros(2, len(self._order), dtype=torch.int64, device=device)
        self._hidden = torch.empty(0, 0, device=device)
        self._plays: dict[int, tuple[Play, Play]] = {}
        self._randoms: dict[int, Play] = {}
        self._sharing: dict[int, Play] = {}
        self._playing: Tensor | None = None

    def record(self, recorder: Recorder, sizes: Sequence[int] | None = None) -> None:
        """Record every size, largest first, so that the smaller ones find their memory in the pool; or only `sizes`."""
        for size in reversed(self.sizes if sizes is None else sizes):
            if self._work.shares and size >= SHARING_LEAST and (size & (size - 1) == 0 or size == self.sizes[-1]):
                self._sharing[size] = recorder.record("sharing", partial(self._forward, size, True))
            self._plays[size] = (
                recorder.record("decode", partial(self._forward, size, False)),
                recorder.record("greedy", partial(self._draw, self._work.greedy, size)),
            )
            if self._work.random is not None:
                self._randoms[size] = recorder.record("random", partial(self._draw, self._work.random, size))

    def forget(self) -> None:
        """Drop what was recorded; where nothing is, recordings are functions that hold this object."""
        self._plays.clear()
        self._randoms.clear()
        self._sharing.clear()

    @property
    def draws(self) -> bool:
        """Whether `random` can be played."""
        return bool(self._randoms)

    def covers(self, rows: int) -> bool:
        """Whether a batch of so many rows can be played."""
        return bool(self._plays) and rows <= self.sizes[-1]

    def forward(self, order: Tensor, sharing: bool) -> Tensor:
        """Compute one token of each row in `order`, (n,) int64: hidden states (n, hidden), valid until the next call.

        The same tensor as last time means the same rows: nothing is copied then. `sharing` says that some begin alike.
        """
        count = len(order)
        if order is not self._playing:
            self._order[:count].copy_(order)
            self._order[count:].fill_(self._dummy_row)
            self._playing = order
        if sharing and count >= SHARING_LEAST and self._sharing:
            self._sharing[min(size for size in self._sharing if size >= count)]()
        else:
            self._plays[self._size(count)][0]()
        return self._hidden[:count]

    def greedy(self, count: int) -> Tensor:
        """The most probable token of the `count` rows of the last `forward`: (2, count) int64, valid until the next."""
        self._plays[self._size(count)][1]()
        return self._drawn[:, :count]

    def random(self, count: int) -> Tensor:
        """Tokens of these rows by their own settings, greedy ones among them; in place of `greedy`."""
        self._randoms[self._size(count)]()
        return self._drawn[:, :count]

    def _size(self, count: int) -> int:
        return self.sizes[bisect_left(self.sizes, count)]

    def _forward(self, size: int, sharing: bool) -> None:
        hidden = self._work.forward(self._order[:size], sharing)
        if not self._hidden.numel():
            self._hidden = torch.empty(len(self._order), hidden.shape[1], dtype=hidden.dtype, device=hidden.device)
        self._hidden[:size].copy_(hidden)

    def _draw(self, draw: Callable[[Tensor, Tensor], Tensor], size: int) -> None:
        self._drawn[:, :size].copy_(draw(self._order[:size], self._hidden[:size]))
