"""`GrammarWorker`: a thread beside the step loop that has grammars checked and compiled, and unused ones dropped.

It does the waiting: for the checker first, then for the rank that samples. What it has done shows in a descriptor of
the loop's selector. Owned by `GrammarService`, which decides what is done; knows no requests.
"""

import contextlib
import queue
import select
import socket
import sys
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from quire.base.errors import RequestError
from quire.base.logging import get_logger
from quire.executors.base import Executor
from quire.messages.structured import FIELD, StructuredOutputsParams
from quire.messages.wire import FAILED
from quire.structured.checker import GrammarChecker
from quire.structured.matcher import Vocabulary

log = get_logger(__name__)

JOIN_S = 5.0

QUIET_S = 5.0
"""How long nothing must have been asked for before unused grammars are dropped by themselves, and their memory goes
back to the system: that takes tens of ms where the heap has many holes, and whoever wants memory meanwhile waits."""

LAST = sys.maxsize
"""The number of what can wait until nothing else is to be done."""


@dataclass(slots=True)
class PendingGrammar:
    """A grammar on its way.

    Attributes:
        number: the smallest is seen to first.
        key: tells it from others.
        room: it is compiled where it is good, and not only checked.
        unwanted: nobody waits for it, so nothing need be done.
        checked, compiled: what has been done.
        error: why it is refused.
    """

    number: int
    key: str
    wanted: StructuredOutputsParams
    room: bool
    unwanted: bool = False
    checked: bool = False
    compiled: bool = False
    error: RequestError | None = None


class GrammarWorker:
    """The thread; it begins with the first grammar.

    Args:
        executor: where grammars are compiled for use.
        vocabulary: of the model.

    Attributes:
        descriptor: readable when `collect` has something to give.
    """

    def __init__(self, executor: Executor, vocabulary: Vocabulary) -> None:
        self._executor = executor
        self._vocabulary = vocabulary
        self._checker = GrammarChecker(vocabulary)
        self._todo: queue.PriorityQueue[tuple[int, PendingGrammar | None]] = queue.PriorityQueue()
        self._unused: deque[str] = deque()
        self._done: deque[PendingGrammar] = deque()
        self._news, self._bell = socket.socketpair()
        for end in (self._news, self._bell):
            end.setblocking(False)
        self._thread: threading.Thread | None = None
        self._closed = False
        self.descriptor = self._news.fileno()

    def submit(self, pending: PendingGrammar) -> None:
        """Have a grammar checked, unless it was, and compiled, if there is room. `collect` gives it back."""
        try:
            self._begin_thread()
        except RuntimeError:  # there are too many threads
            pending.error = self._failure()
            self._tell(pending)
        else:
            self._todo.put((pending.number, pending))

    def drop(self, keys: Iterable[str]) -> None:
        """Have compiled grammars dropped: before the next is compiled, or when none has been for a while."""
        self._unused.extend(keys)
        self._todo.put((LAST, None))

    def wait(self) -> None:
        """Wait until `collect` has something to give."""
        select.select([self.descriptor], [], [])

    def collect(self) -> list[PendingGrammar]:
        """Those that were seen to since this was last asked."""
        with contextlib.suppress(BlockingIOError):
            self._news.recv(4096)
        return [self._done.popleft() for _ in range(len(self._done))]

    def close(self) -> None:
        """End the checker and the thread."""
        self._closed = True
        if self._thread is not None:
            self._todo.put((-1, None))
            self._checker.interrupt()
            self._thread.join(JOIN_S)
            self._thread = None
        self._news.close()
        self._bell.close()

    def _begin_thread(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._work, name="grammars", daemon=True)
            thread.start()
            self._thread = thread

    def _work(self) -> None:
        patience: float | None = None
        while True:
            try:
                _, pending = self._todo.get(timeout=patience)
            except queue.Empty:
                self._drop_unused()
                patience = None
                continue
            if self._closed:
                break
            if pending is None:
                patience = QUIET_S
            else:
                pending.error = None if pending.unwanted else self._see_to(pending)
                self._tell(pending)
        self._checker.close()

    def _see_to(self, pending: PendingGrammar) -> RequestError | None:
        try:
            if not pending.checked:
                self._checker.check(pending.wanted)
                pending.checked = True
            if pending.room:
                self._prepare(pending.wanted)
                pending.compiled = True
        except RequestError as error:
            return error
        except BaseException:  # what panics in Rust is no Exception, and without this thread all would wait for ever
            return self._failure()
        return None

    def _drop_unused(self) -> None:
        try:
            self._prepare(None)
        except BaseException:  # as above
            self._failure()

    def _prepare(self, wanted: StructuredOutputsParams | None) -> None:
        # A grammar that is wanted again after it was dropped is prepared after this.
        unused = [self._unused.popleft() for _ in range(len(self._unused))]
        self._executor.prepare(wanted, self._vocabulary, unused)

    def _failure(self) -> RequestError:
        """What to say of the exception at hand: a fault of ours, which may pass (no process, no memory)."""
        if not self._closed:
            log.exception("the engine failed on a grammar")
        return RequestError("The grammar could not be compiled: the engine failed.", FIELD, FAILED)

    def _tell(self, pending: PendingGrammar) -> None:
        self._done.append(pending)
        with contextlib.suppress(OSError):  # what is full is readable, too; and the worker may be closed
            self._bell.send(b"\0")
