"""Length-prefixed frames over a stream socket: 4 bytes, big-endian, then so many bytes; and a pair of such sockets."""

import contextlib
import socket
import struct
from collections.abc import Iterator

from quire.base.errors import TransportError
from quire.messages.codec import MAX_FRAME_BYTES

_LENGTH = struct.Struct(">I")


@contextlib.contextmanager
def pair_for_child() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A pair of sockets, ours and a child's: the child's is closed after the block, ours only where the block fails."""
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            yield ours, theirs
        except BaseException:
            ours.close()
            raise


def send(to: socket.socket, frame: bytes) -> None:
    """Send one frame. Raises OSError when the other side is gone."""
    to.sendall(_LENGTH.pack(len(frame)) + frame)


def receive(source: socket.socket) -> bytes | None:
    """Receive one frame; None when the other side has ended. Raises TransportError for a length beyond the limit."""
    header = _exactly(source, _LENGTH.size)
    if header is None:
        return None
    (length,) = _LENGTH.unpack(header)
    if length > MAX_FRAME_BYTES:
        raise TransportError(f"a frame of {length} bytes is announced; the limit is {MAX_FRAME_BYTES}")
    return _exactly(source, length)


def _exactly(source: socket.socket, count: int) -> bytes | None:
    buffer = bytearray()
    while len(buffer) < count:
        try:
            piece = source.recv(min(count - len(buffer), 1 << 20))
        except ConnectionResetError:
            return None
        if not piece:
            return None
        buffer += piece
    return bytes(buffer)
