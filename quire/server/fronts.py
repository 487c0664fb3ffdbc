"""`Fronts`: the front ends of a server as child processes, begun again when they die, and what they ask each other.

Owned by the supervisor. It knows no HTTP and no engine: it passes on what it is told. What a front end had counted when
it was last asked is kept when it dies, so that counters of the server never fall.
"""

import asyncio
import contextlib
import itertools
import os
import signal
import socket
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from quire.base.errors import ConfigError, EngineError, TransportError
from quire.base.interpreter import python
from quire.base.logging import get_logger
from quire.config import environ
from quire.messages.control import (
    Alive,
    Answered,
    Answers,
    Ask,
    Asked,
    CannotServe,
    Count,
    Counted,
    CrashReport,
    FromFront,
    Reply,
    Serving,
    Tally,
    ToFront,
)
from quire.messages.frames import pair_for_child
from quire.server.backoff import Backoff
from quire.server.channel import Channel
from quire.server.tallies import total

log = get_logger(__name__)

ANSWER_S = 1.0
"""How long front ends may take to answer each other; who is late is left out."""
FIRST_WAIT_S, STEADY_S, TRIES = 0.1, 10.0, 10
GONE_S = 1.0
"""How long a process that was killed may take to be gone."""
FIRST_SIGN_S = 120.0
"""How long a front end may take to load its tokenizer; then its event loop goes round."""
STACKS_S = 0.5
"""How long a hung front end gets to write what its threads do."""
STOPPING_S = 0.1
"""How soon whoever waits to begin a front end again hears that the server stops."""
REPORTS = 256
"""News of requests that are told to front ends that are born later."""


class Owner(Protocol):
    """Who keeps front ends: the supervisor."""

    def born(self, listener: int, name: str) -> list[ToFront]:
        """What a front end is told first, but for its descriptors."""
        ...

    def serving(self, index: int, serving: Serving) -> None:
        """Number `index` begins to answer."""
        ...

    def gone(self, name: str) -> None:
        """One has died."""
        ...

    def tallies(self) -> list[Tally]:
        """What the owner itself counts."""
        ...


@dataclass(slots=True)
class Child:
    """A front end's process.

    Attributes:
        name: which no other one has had.
        heard_by: by when its event loop must say again that it goes round.
        served_at: when it began to answer; None before.
        counted: what it said when it was last asked.
    """

    name: str
    process: asyncio.subprocess.Process
    channel: Channel[FromFront]
    heard_by: float
    served_at: float | None = None
    counted: list[Tally] = field(default_factory=list)

    def kill(self) -> None:
        """End the process, if it has not ended."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()


class _Exchange:
    """A question on its way: who asked, who has not answered, and what the dead had counted when it was asked."""

    def __init__(self, asker: int, child: Child, ask: Ask, others: set[int], past: list[Tally]) -> None:
        self.asker = asker
        self.child = child
        self.ask = ask
        self.missing = others
        self.past = past
        self.replies: list[Reply] = []
        self.timer: asyncio.TimerHandle | None = None


class Fronts:
    """The front ends of a server as child processes.

    Args:
        owner: see `Owner`.
        listeners: a listening socket for each.
        pulse: descriptor of the page that cores write.
        command: what Python runs as a front end.
        stall_s: one that says nothing for so long is hung, and is replaced.

    Attributes:
        restarts: front ends begun after one has died.
        stopping: whether those that end are meant to.
    """

    def __init__(
        self,
        owner: Owner,
        listeners: list[socket.socket],
        pulse: int,
        command: Sequence[str],
        stall_s: float,
    ) -> None:
        self._owner = owner
        self._listeners = listeners
        self._pulse = pulse
        self._command = command
        self._stall_s = stall_s
        self._names = itertools.count()
        self._children: dict[int, Child] = {}
        self._exchanges: dict[int, _Exchange] = {}
        self._numbers = itertools.count()
        self._reports: deque[CrashReport] = deque(maxlen=REPORTS)
        self._past: list[Tally] = []
        self._cannot: str | None = None
        self.restarts = 0
        self.stopping = False

    @property
    def serving(self) -> int:
        """How many answer."""
        return sum(child.served_at is not None for child in self._children.values())

    def tell_all(self, message: ToFront) -> None:
        """Send it to every front end that lives."""
        for index in list(self._children):
            self._tell(index, message)

    def kill(self) -> None:
        """End all of them at once."""
        for child in self._children.values():
            child.kill()

    async def end(self) -> None:
        """Kill those that nobody keeps any more, and wait until they are gone."""
        self.kill()
        # A copy: one that is still kept is buried while this waits.
        for child in list(self._children.values()):
            child.channel.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(child.process.wait(), GONE_S)

    async def keep(self, index: int) -> None:
        """Keep front end number `index` alive until the server stops.

        Raises:
            ConfigError: it says that it can never serve.
            EngineError: it dies again and again before it serves.
        """
        backoff = Backoff(FIRST_WAIT_S, STEADY_S, TRIES)
        while True:
            try:
                child = await self._start(index)
            except OSError as error:
                # No memory, no process, no descriptor: that may pass.
                log.error("front end %d cannot be begun: %s", index, error)
                if not await self._wait(index, backoff, None):
                    return
                continue
            if self.stopping:
                # The others were killed before this one was known.
                child.kill()
            watching = asyncio.create_task(self._watch(index, child))
            await self._listen(index, child)
            code = await child.process.wait()
            watching.cancel()
            self._buried(index, child)
            if self.stopping:
                return
            if self._cannot is not None:
                raise ConfigError(self._cannot)
            log.error("front end %d has ended (%s); another one begins", index, _how(code))
            if not await self._wait(index, backoff, None if child.served_at is None else _now() - child.served_at):
                return
            self.restarts += 1

    async def _wait(self, index: int, backoff: Backoff, served_s: float | None) -> bool:
        """Wait for as long as the deaths of a front end ask for; whether the server still goes on then."""
        wait = backoff.died(served_s)
        if wait is None:
            raise EngineError(f"front end {index} has ended {backoff.deaths} times before it could serve")
        until = _now() + wait
        while not self.stopping and (left := until - _now()) > 0:
            await asyncio.sleep(min(STOPPING_S, left))
        return not self.stopping

    async def _start(self, index: int) -> Child:
        listener = self._listeners[index]
        with pair_for_child() as (ours, theirs):
            process = await asyncio.create_subprocess_exec(
                *python(),
                *self._command,
                str(theirs.fileno()),
                # Its end is the end of this process, which no signal need tell.
                stdin=asyncio.subprocess.PIPE,
                env=environ.snapshot(),
                pass_fds=[theirs.fileno(), listener.fileno(), self._pulse],
                start_new_session=True,
            )
        channel: Channel[FromFront] = await Channel.open(ours, FromFront)
        child = Child(f"front-{next(self._names)}", process, channel, _now() + max(FIRST_SIGN_S, self._stall_s))
        for message in [*self._owner.born(listener.fileno(), child.name), *self._reports]:
            child.channel.send(message)
        self._children[index] = child
        return child

    async def _watch(self, index: int, child: Child) -> None:
        """Kill a front end whose event loop has stopped going round."""
        while True:
            await asyncio.sleep(min(1.0, self._stall_s / 20))
            if _now() > child.heard_by:
                log.error("front end %d does not move any more; this is what its threads do:", index)
                with contextlib.suppress(ProcessLookupError):
                    for number in (signal.SIGUSR1, signal.SIGCONT):
                        child.process.send_signal(number)
                await asyncio.sleep(STACKS_S)
                child.kill()
                return

    async def _listen(self, index: int, child: Child) -> None:
        try:
            while (message := await child.channel.receive()) is not None:
                self._handle(index, child, message)
        except TransportError as error:
            log.error("front end %d: %s", index, error)
            child.kill()

    def _handle(self, index: int, child: Child, message: FromFront) -> None:
        if isinstance(message, Alive):
            child.heard_by = _now() + self._stall_s
        elif isinstance(message, Serving):
            child.served_at = _now()
            self._owner.serving(index, message)
        elif isinstance(message, CannotServe):
            self._cannot = message.message
        elif isinstance(message, CrashReport):
            self._reports.append(message)
            for other in list(self._children):
                if other != index:
                    self._tell(other, message)
        elif isinstance(message, Ask):
            self._ask(index, child, message)
        elif isinstance(message, Answered):
            self._answered(index, child, message)

    def _tell(self, index: int, message: ToFront) -> None:
        child = self._children[index]
        try:
            child.channel.send(message)
        except TransportError as error:
            log.error("front end %d: %s", index, error)
            child.kill()

    def _ask(self, index: int, child: Child, ask: Ask) -> None:
        if isinstance(ask.own, Counted):
            child.counted = ask.own.tallies
        others = {other for other, each in self._children.items() if other != index and each.served_at is not None}
        number = next(self._numbers)
        exchange = self._exchanges[number] = _Exchange(index, child, ask, others, self._past)
        exchange.timer = asyncio.get_running_loop().call_later(ANSWER_S, self._end, number)
        for other in others.copy():
            self._tell(other, Asked(number, ask.question))
        if not others:
            self._end(number)

    def _answered(self, index: int, child: Child, message: Answered) -> None:
        if isinstance(message.reply, Counted):
            child.counted = message.reply.tallies
        exchange = self._exchanges.get(message.number)
        if exchange is not None and index in exchange.missing:
            exchange.replies.append(message.reply)
            exchange.missing.discard(index)
            if not exchange.missing:
                self._end(message.number)

    def _end(self, number: int) -> None:
        exchange = self._exchanges.pop(number, None)
        if exchange is None:
            return
        if exchange.timer is not None:
            exchange.timer.cancel()
        if isinstance(exchange.ask.question, Count):
            late = [self._children[index].counted for index in exchange.missing if index in self._children]
            exchange.replies.append(Counted(0, total([exchange.past, self._owner.tallies(), *late])))
        # Whoever has taken the asker's place has numbers of its own.
        if self._children.get(exchange.asker) is exchange.child:
            self._tell(exchange.asker, Answers(exchange.ask.number, exchange.replies))

    def _buried(self, index: int, child: Child) -> None:
        del self._children[index]
        child.channel.close()
        self._owner.gone(child.name)
        self._past = total([self._past, child.counted])
        for number, exchange in list(self._exchanges.items()):
            if index in exchange.missing:
                # Whoever had answered before it died is counted already.
                exchange.missing.discard(index)
                if isinstance(exchange.ask.question, Count):
                    exchange.replies.append(Counted(0, child.counted))
            if not exchange.missing:
                self._end(number)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _how(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def close_all(listeners: list[socket.socket], pulse: int) -> None:
    """Close what front ends have inherited."""
    for listener in {id(each): each for each in listeners}.values():
        listener.close()
    os.close(pulse)
