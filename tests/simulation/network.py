"""A network that is made up: frames arrive in order, late, or not at all when one of the two sides dies."""

import asyncio
import random
from collections import deque
from itertools import count

from quire.messages.codec import Codec
from quire.messages.wire import FromClient, Hello, ToClient
from quire.version import __version__

TICK_S = 1e-6
"""Timers of one moment fire in no order, so no two frames of a connection arrive in the same one."""


class Port:
    """Where a core listens.

    Attributes:
        inbox: (client, frame) that have arrived.
        news: set when there is something in it.
    """

    def __init__(self) -> None:
        self.inbox: deque[tuple[bytes, bytes]] = deque()
        self.news = asyncio.Event()
        self.links: dict[bytes, Link] = {}
        self.open = True

    def put(self, client: bytes, frame: bytes) -> None:
        """A frame arrives."""
        if self.open:
            self.inbox.append((client, frame))
            self.news.set()

    def close(self) -> None:
        """The core is dead: nothing arrives any more, and what it has not sent is lost."""
        self.open = False
        self.inbox.clear()
        for link in self.links.values():
            link.lose()


class Network:
    """All connections of a simulated server.

    Attributes:
        delay_s: what a frame takes, on average.
    """

    def __init__(self, rng: random.Random, delay_s: float) -> None:
        self.delay_s = delay_s
        self._rng = rng
        self._ports: dict[str, Port] = {}
        self._numbers = count()

    def listen(self, address: str) -> Port:
        """A core is there."""
        port = self._ports[address] = Port()
        return port

    def connect(self, address: str, name: str, secret: str) -> "Link":
        """A front end connects, and says Hello."""
        link = Link(self, self._ports[address], b"%d" % next(self._numbers))
        link.send(Hello(__version__, name, secret))
        return link

    def delay(self) -> float:
        """What the next frame takes."""
        return self._rng.expovariate(1 / self.delay_s) if self.delay_s else 0.0

    def cut(self) -> float:
        """What was sent in the last so many seconds before a death is lost."""
        return self._rng.random() * self.delay_s


class Link:
    """One connection; the front end's `Connection`."""

    def __init__(self, network: Network, port: Port, client: bytes) -> None:
        self._network = network
        self._port = port
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._encode = Codec[FromClient](FromClient).encode
        self._to_core = Codec[ToClient](ToClient)
        self._up_at = self._down_at = 0.0
        self._frames: asyncio.Queue[bytes] = asyncio.Queue()
        self._open = True
        self._late: list[asyncio.TimerHandle] = []
        port.links[client] = self

    def send(self, message: FromClient) -> None:
        """To the core."""
        self.send_raw(self._encode(message))

    def send_raw(self, frame: bytes) -> None:
        """Whatever it is."""
        if not self._open:
            return
        self._up_at = max(self._up_at + TICK_S, self._loop.time() + self._network.delay())
        self._late.append(self._loop.call_at(self._up_at, self._port.put, self._client, frame))

    def deliver(self, frame: bytes) -> None:
        """From the core."""
        self._down_at = max(self._down_at + TICK_S, self._loop.time() + self._network.delay())
        self._late.append(self._loop.call_at(self._down_at, self._arrive, frame))
        self._late = [timer for timer in self._late if timer.when() >= self._loop.time()]

    def _arrive(self, frame: bytes) -> None:
        if self._open:
            self._frames.put_nowait(frame)

    async def receive(self) -> ToClient:
        """The next message; for ever, if the core is dead."""
        return self._to_core.decode(await self._frames.get())

    def close(self) -> None:
        """The front end wants nothing more; what it has said arrives."""
        self._open = False

    def lose(self) -> None:
        """One of the two has died: what was said last is lost."""
        until = self._loop.time() + self._network.cut()
        for timer in self._late:
            if timer.when() > until:
                timer.cancel()
