"""Decode steps recorded once and replayed: one launch instead of hundreds.

A recorded step covers a fixed number of rows, each computing one token; a smaller batch is padded with a dummy row
whose page table names page 0, so that no kernel knows of padding. Everything it reads lies in tensors that stay where
they are. Called by the runner; on devices without graphs a recording is the function itself, which is how CPUs test it.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from quire.sampling.batch import DrawMode

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
"""Rows in the smallest batch that is also recorded with kernels which read beginnings that rows share once for all."""


@dataclass(frozen=True, slots=True)
class DecodeWork:
    """What is recorded, of rows `order`, (n,) int64.

    Attributes:
        forward: computes one token of each row and returns hidden states, (n, hidden); whether rows may begin alike.
        draws: the ways to draw each row's token from them that can be recorded, (m, n) int64: tokens, their status, and
            what else is told of them.
        shares: whether rows can ever begin alike.
    """

    forward: Callable[[Tensor, bool], Tensor]
    draws: Mapping[DrawMode, Callable[[Tensor, Tensor], Tensor]]
    shares: bool


class _Recorded:
    """Recordings of one kind, by number of rows: `sizes`, ascending."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self._plays: dict[int, Play] = {}

    def put(self, size: int, play: Play) -> None:
        if size not in self._plays:
            insort(self.sizes, size)
        self._plays[size] = play

    @property
    def most(self) -> int:
        """Rows of the largest; 0 where nothing is recorded."""
        return self.sizes[-1] if self.sizes else 0

    def room(self, rows: int) -> int:
        """Of the smallest that has room for so many rows."""
        return self.sizes[bisect_left(self.sizes, rows)]

    def play(self, rows: int) -> int:
        """Play the smallest that has room for so many rows; returns that room."""
        size = self.room(rows)
        self._plays[size]()
        return size


class DecodeGraphs:
    """Recorded decode steps by number of rows. Model and sampling are recordings of their own: not all rows draw alike.

    What few steps need (beginnings that are shared, edited logits) is recorded where the number of rows is a power of
    two, and for the largest.

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
        self._drawn: dict[DrawMode, Tensor] = {}
        self._hidden = torch.empty(0, 0, device=device)
        self._playing: Tensor | None = None
        self.forget()

    def record(self, recorder: Recorder, sizes: Sequence[int] | None = None) -> None:
        """Record every size, largest first, so that the smaller ones find their memory in the pool; or only `sizes`."""
        for size in reversed(self.sizes if sizes is None else sizes):
            sparse = size & (size - 1) == 0 or size == self.sizes[-1]
            if sparse and self._work.shares and size >= SHARING_LEAST:
                self._sharing.put(size, recorder.record("sharing", partial(self._forward, size, True)))
            self._forwards.put(size, recorder.record("decode", partial(self._forward, size, False)))
            for draw_mode in self._work.draws:
                if sparse or draw_mode is not DrawMode.EDITED:
                    self._draws[draw_mode].put(
                        size, recorder.record(draw_mode.name, partial(self._draw, draw_mode, size))
                    )

    def forget(self) -> None:
        """Drop what was recorded; where nothing is, recordings are functions that hold this object."""
        self._forwards, self._sharing = _Recorded(), _Recorded()
        self._draws = {draw_mode: _Recorded() for draw_mode in DrawMode}

    def covers(self, rows: int) -> bool:
        """Whether a batch of so many rows can be played."""
        return 0 < rows <= self._forwards.most

    def room(self, rows: int) -> int:
        """For how many rows to compute products of so many outside of recordings: as many as a recording has.

        A library has other kernels for every few rows, and to load one waits until the device has nothing left to do.
        Those of recordings are loaded.
        """
        return self._forwards.room(rows) if self.covers(rows) else rows

    def draws(self, draw_mode: DrawMode, rows: int) -> bool:
        """Whether so many rows can be drawn for in this way."""
        return 0 < rows <= self._draws[draw_mode].most

    def forward(self, order: Tensor, sharing: bool) -> Tensor:
        """Compute one token of each row in `order`, (n,) int64: hidden states (n, hidden), valid until the next call.

        The same tensor as last time means the same rows: nothing is copied then. `sharing` says that some begin alike.
        """
        count = len(order)
        if order is not self._playing:
            self._order[:count].copy_(order)
            self._order[count:].fill_(self._dummy_row)
            self._playing = order
        shared = sharing and SHARING_LEAST <= count <= self._sharing.most
        (self._sharing if shared else self._forwards).play(count)
        return self._hidden[:count]

    def draw(self, draw_mode: DrawMode, count: int) -> Tensor:
        """What is drawn for the `count` rows of the last `forward`, and for those that pad them.

        Returns: (m, count or more) int64, in one piece, valid until the next call.
        """
        return self._room(draw_mode, self._draws[draw_mode].play(count))

    def _forward(self, size: int, sharing: bool) -> None:
        hidden = self._work.forward(self._order[:size], sharing)
        if not self._hidden.numel():
            self._hidden = torch.empty(len(self._order), hidden.shape[1], dtype=hidden.dtype, device=hidden.device)
        self._hidden[:size].copy_(hidden)

    def _draw(self, draw_mode: DrawMode, size: int) -> None:
        drawn = self._work.draws[draw_mode](self._order[:size], self._hidden[:size])
        if draw_mode not in self._drawn:
            self._drawn[draw_mode] = drawn.new_zeros(len(drawn), len(self._order))
        self._room(draw_mode, size).copy_(drawn)

    def _room(self, draw_mode: DrawMode, size: int) -> Tensor:
        """Where a recording for `size` rows puts what it draws, (m, size)."""
        room = self._drawn[draw_mode]
        return room.view(-1)[: len(room) * size].view(-1, size)
