"""How bytes of a checkpoint get to a parameter: straight into host memory, or over a ring of pinned slots to a device.

A stage is shared by all threads that read. Values are converted where they end up, so no second copy is made on the
host. Called by `load.py` only.
"""

from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

import torch
from torch import Tensor

from quire.loading.reader import BLOCK_BYTES, Files, Slice

SLOTS_PER_READER = 2
"""While one slot is copied to the device the next one is read."""


class Stage(Protocol):
    """A way to the parameters."""

    def take(self, piece: Slice, files: Files) -> None:
        """Read `piece` and send it on its way. Called from several threads. Raises CheckpointError."""
        ...

    def finish(self) -> None:
        """Wait until everything has arrived."""
        ...


class HostStage:
    """Parameters in host memory: read in place, unless values must be converted or packed.

    Those are read into memory that the threads hand on to each other: new pages cost more than reading does.
    """

    def __init__(self) -> None:
        self._spare: list[Tensor] = []

    def take(self, piece: Slice, files: Files) -> None:
        """See Stage."""
        if _as_is(piece):
            files.read(piece, piece.target)
            return
        memory = self._memory(piece.nbytes)
        block = memory[: piece.nbytes].view(piece.dtype).view(piece.target.shape)
        files.read(piece, block)
        _store(piece, block)
        self._spare.append(memory)

    def _memory(self, size: int) -> Tensor:
        try:
            memory = self._spare.pop()
        except IndexError:
            memory = torch.empty(0, dtype=torch.uint8)
        return memory if len(memory) >= size else torch.empty(max(size, BLOCK_BYTES), dtype=torch.uint8)

    def finish(self) -> None:
        """See Stage."""


@dataclass(frozen=True, slots=True)
class _Slot:
    """Pinned memory, and the event after which it is free."""

    memory: Tensor
    copied: torch.Event


class DeviceStage:
    """Parameters on an accelerator.

    Args:
        device: of the parameters.
        readers: threads that will call `take`.
    """

    def __init__(self, device: torch.device, readers: int) -> None:
        self._device = device
        self._module = torch.get_device_module(device)
        # What was enqueued before may still use memory that is a parameter now.
        self._module.synchronize(device)
        self._stream = self._module.Stream(device)
        count = readers * SLOTS_PER_READER
        ring = torch.empty(count * BLOCK_BYTES, dtype=torch.uint8, pin_memory=True)
        self._free: SimpleQueue[_Slot] = SimpleQueue()
        for memory in ring.view(count, BLOCK_BYTES):
            self._free.put(_Slot(memory, self._module.Event()))

    def take(self, piece: Slice, files: Files) -> None:
        """See Stage."""
        if piece.nbytes > BLOCK_BYTES:
            block = torch.empty(piece.target.shape, dtype=piece.dtype)
            files.read(piece, block)
            _store(piece, block.to(self._device))
            return
        slot = self._free.get()
        try:
            slot.copied.synchronize()
            block = slot.memory[: piece.nbytes].view(piece.dtype).view(piece.target.shape)
            files.read(piece, block)
            with self._module.stream(self._stream):
                self._send(piece, block)
                slot.copied.record(self._stream)
        finally:
            self._free.put(slot)

    def finish(self) -> None:
        """See Stage."""
        self._stream.synchronize()

    def _send(self, piece: Slice, block: Tensor) -> None:
        # torch converts on the host and waits where types or strides differ; a copy as it is does neither.
        if not _as_is(piece):
            block = block.to(self._device, non_blocking=True)
        _store(piece, block)


def stage_for(device: torch.device, readers: int) -> Stage:
    """The stage to parameters on `device`, for so many threads."""
    return HostStage() if device.type == "cpu" else DeviceStage(device, readers)


def _as_is(piece: Slice) -> bool:
    """Whether the bytes of the file are the bytes of the target."""
    unchanged = piece.keep is None and piece.change is None
    return unchanged and piece.target.dtype == piece.dtype and piece.target.is_contiguous()


def _store(piece: Slice, block: Tensor) -> None:
    """Bring values that were read to where they belong."""
    if piece.change is not None:
        block = piece.change(block)
    if piece.keep is not None:
        piece.keep(block)
    else:
        piece.target.copy_(block, non_blocking=True)
