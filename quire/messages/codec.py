"""Bytes on a wire: msgpack of the typed unions, with a size limit. Never pickle.

Both borders (front end and core, core and ranks) use it; a frame that is not a message of this version is a
TransportError for whoever reads it.
"""

from typing import Any, Generic, TypeVar

import msgspec

from quire.base.errors import TransportError

MAX_FRAME_BYTES = 256 << 20
"""Largest frame that is read; the longest prompts are a few megabytes."""

Message = TypeVar("Message")


class Codec(Generic[Message]):
    """Encodes anything typed, decodes one union of message types.

    Args:
        union: the struct type or union of types that may arrive.
    """

    def __init__(self, union: Any) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(union)

    def encode(self, message: Any) -> bytes:
        """The bytes of `message`."""
        return self._encoder.encode(message)

    def decode(self, frame: bytes) -> Message:
        """The message in `frame`. Raises TransportError."""
        if len(frame) > MAX_FRAME_BYTES:
            raise TransportError(f"a frame of {len(frame)} bytes is larger than {MAX_FRAME_BYTES}")
        try:
            return self._decoder.decode(frame)
        # The last two: text that is no UTF-8, and more nesting than the parser goes into.
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise TransportError(f"not a message of this version: {error}") from error
