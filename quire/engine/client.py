"""`CoreClient`: the front end's side of the conversation with a core process. It moves messages and owns no request."""

import asyncio
from typing import Protocol

import zmq
import zmq.asyncio

from quire.base.tasks import Tasks
from quire.messages.codec import Codec
from quire.messages.wire import FromClient, Hello, ToClient
from quire.version import __version__


class Connection(Protocol):
    """What a front end asks of its connection to a core."""

    def send(self, message: FromClient) -> None:
        """Send without waiting."""
        ...

    async def receive(self) -> ToClient:
        """The next message. Raises TransportError."""
        ...

    def close(self) -> None:
        """Drop the connection."""
        ...


class CoreClient:
    """A connection to the core that listens at `address`. Must be made in a running event loop.

    Args:
        address: of the core.
        name, secret: what `Hello` says.
    """

    def __init__(self, address: str, name: str = "", secret: str = "") -> None:
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.set_hwm(0)
        self._socket.linger = 0
        self._socket.connect(address)
        self._codec: Codec[ToClient] = Codec(ToClient)
        self._sending = Tasks()
        self.send(Hello(__version__, name, secret))

    def send(self, message: FromClient) -> None:
        """Send without waiting: the queue is unbounded, and what it holds is bounded by admission."""
        self._sending.keep(asyncio.ensure_future(self._socket.send(self._codec.encode(message))))

    async def receive(self) -> ToClient:
        """The next message. Raises TransportError if it is none of this version."""
        return self._codec.decode(await self._socket.recv())

    def close(self) -> None:
        """Drop the connection."""
        self._socket.close()
        self._context.term()
