"""`Channel`: typed frames over a socket pair, for an event loop; the form is that of `messages/frames.py`."""

import asyncio
import socket
import struct
from typing import Any, Generic, TypeVar

from quire.base.errors import TransportError
from quire.messages.codec import MAX_FRAME_BYTES, Codec

_LENGTH = struct.Struct(">I")
MOST_UNREAD_BYTES = 256 << 20

Message = TypeVar("Message")


class Channel(Generic[Message]):
    """One side of a conversation; made by `open`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, codec: Codec[Message]) -> None:
        self._reader = reader
        self._writer = writer
        self._codec = codec

    @classmethod
    async def open(cls, end: socket.socket, hears: Any) -> "Channel[Message]":
        """Speak over `end` from now on; `hears` is the union of types that may arrive."""
        reader, writer = await asyncio.open_connection(sock=end)
        return cls(reader, writer, Codec(hears))

    def send(self, message: Any) -> None:
        """Send without waiting. Raises TransportError if the other side has not read for very long."""
        if self._writer.transport.get_write_buffer_size() > MOST_UNREAD_BYTES:
            raise TransportError("the other process does not read what it is told")
        frame = self._codec.encode(message)
        # Not joined: frames of long texts are megabytes.
        self._writer.writelines((_LENGTH.pack(len(frame)), frame))

    async def receive(self) -> Message | None:
        """The next message; None when the other side has ended. Raises TransportError."""
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            if length > MAX_FRAME_BYTES:
                raise TransportError(f"a frame of {length} bytes is announced; the limit is {MAX_FRAME_BYTES}")
            return self._codec.decode(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def close(self) -> None:
        """Say nothing more."""
        self._writer.close()
