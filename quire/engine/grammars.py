"""`GrammarService`: has grammars checked and compiled beside the step loop, and tells the scheduler when they are done.

A thread of its own does the waiting: the checker first, then the rank that samples. What it has done shows in a
descriptor of the loop's selector. Owned by `EngineCore`; it knows request ids and grammars, never tokens.
"""

import contextlib
import queue
import select
import socket
import threading
import traceback
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from quire.base.errors import RequestError
from quire.base.logging import get_logger
from quire.executors.base import Executor
from quire.messages.request import Request
from quire.messages.structured import FIELD, StructuredOutputsParams, grammar_key
from quire.messages.wire import FAILED, Refused
from quire.scheduler.scheduler import Scheduler
from quire.structured.checker import GrammarChecker
from quire.structured.matcher import Vocabulary

log = get_logger(__name__)

KEPT = 64
"""Compiled grammars that are kept for the next request, unless more are in use."""

REMEMBERED = 256
"""Refusals that are remembered, so that the same bad grammar costs nothing a second time."""

JOIN_S = 5.0


@dataclass(slots=True)
class PendingGrammar:
    """A grammar on its way. `users`: requests that wait for it; without any it need not be compiled."""

    key: str
    wanted: StructuredOutputsParams
    users: set[str] = field(default_factory=set)
    error: RequestError | None = None
    skipped: bool = False


class GrammarService:
    """Grammars of one engine.

    Args:
        executor: where grammars are compiled for use.
        scheduler: told to hold sequences back and to let them go.
        vocabulary: of the model.

    Attributes:
        descriptor: readable when `collect` has something to do.
    """

    def __init__(self, executor: Executor, scheduler: Scheduler, vocabulary: Vocabulary) -> None:
        self._executor = executor
        self._scheduler = scheduler
        self._checker = GrammarChecker(vocabulary)
        self._vocabulary = vocabulary
        self._pending: dict[str, PendingGrammar] = {}
        self._ready: OrderedDict[str, None] = OrderedDict()
        self._unused: deque[str] = deque()
        self._refused: OrderedDict[str, RequestError] = OrderedDict()
        self._todo: queue.SimpleQueue[PendingGrammar | None] = queue.SimpleQueue()
        self._done: deque[PendingGrammar] = deque()
        self._news, self._bell = socket.socketpair()
        for end in (self._news, self._bell):
            end.setblocking(False)
        self._thread: threading.Thread | None = None
        self.descriptor = self._news.fileno()

    @property
    def busy(self) -> bool:
        """Whether a grammar is on its way."""
        return bool(self._pending)

    def refuse_bad(self, request: Request) -> None:
        """Raise RequestError if a request's grammar is known to be bad."""
        refusal = self._refused.get(grammar_key(request.params.structured_outputs) or "")
        if refusal is not None:
            raise RequestError(refusal.message, refusal.param, refusal.code)

    def want(self, request: Request) -> None:
        """See to the grammar of a request that the scheduler has taken, before it plans again."""
        wanted = request.params.structured_outputs
        key = grammar_key(wanted)
        if wanted is None or key is None:
            return
        if key in self._ready:
            self._ready.move_to_end(key)
            return
        pending = self._pending.get(key)
        if pending is None:
            pending = self._pending[key] = PendingGrammar(key, wanted, {request.id})
            self._scheduler.hold(key)
            self._submit(pending)
        pending.users.add(request.id)

    def forget(self, request_id: str) -> None:
        """The request has ended before its grammar was ready."""
        for pending in self._pending.values():
            pending.users.discard(request_id)

    def collect(self) -> list[Refused]:
        """Take in what is done: sequences may start, or their requests are refused."""
        try:
            self._news.recv(4096)
        except BlockingIOError:
            return []
        refused: list[Refused] = []
        while self._done:
            refused += self._finish(self._done.popleft())
        return refused

    def wait_for_all(self) -> list[Refused]:
        """Wait until no grammar is on its way; for `LLM`."""
        refused: list[Refused] = []
        while self.busy:
            select.select([self.descriptor], [], [])
            refused += self.collect()
        return refused

    def close(self) -> None:
        """End the checker and the thread."""
        if self._thread is not None:
            for pending in self._pending.values():
                pending.users.clear()
            self._todo.put(None)
            self._checker.interrupt()
            self._thread.join(JOIN_S)
            self._thread = None
        self._news.close()
        self._bell.close()

    def _finish(self, pending: PendingGrammar) -> list[Refused]:
        if pending.skipped and pending.users:  # somebody has asked for it again meanwhile
            pending.skipped = False
            self._submit(pending)
            return []
        del self._pending[pending.key]
        error = pending.error
        refused = []
        if error is not None:
            if error.code != FAILED:
                self._refused[pending.key] = error
                if len(self._refused) > REMEMBERED:
                    self._refused.popitem(last=False)
            for request_id in sorted(pending.users):
                self._scheduler.abort(request_id)
                refused.append(Refused(request_id, error.message, error.param, error.code))
        elif not pending.skipped:
            self._keep(pending.key)
        self._scheduler.ready(pending.key)
        return refused

    def _keep(self, key: str) -> None:
        """A grammar is ready; those used longest ago may go, but none that a sequence could still begin with."""
        self._ready[key] = None
        if len(self._ready) > KEPT:
            used = self._scheduler.grammars()
            for old in [each for each in self._ready if each not in used][: len(self._ready) - KEPT]:
                del self._ready[old]
                self._unused.append(old)

    def _submit(self, pending: PendingGrammar) -> None:
        try:
            self._begin_thread()
        except RuntimeError:  # there are too many threads
            log.error("%s", traceback.format_exc())
            pending.error = _own_fault()
            self._tell(pending)
        else:
            self._todo.put(pending)

    def _begin_thread(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._work, name="grammars", daemon=True)
            thread.start()
            self._thread = thread

    def _work(self) -> None:
        while (pending := self._todo.get()) is not None:
            pending.skipped = not pending.users
            if not pending.skipped:
                pending.error = self._compile(pending)
            self._tell(pending)
        self._checker.close()

    def _tell(self, pending: PendingGrammar) -> None:
        self._done.append(pending)
        with contextlib.suppress(OSError):  # what is full is readable, too; and the service may be closed
            self._bell.send(b"\0")

    def _compile(self, pending: PendingGrammar) -> RequestError | None:
        try:
            self._checker.check(pending.wanted)
            # A grammar that is wanted again after it was dropped is prepared after this.
            unused = [self._unused.popleft() for _ in range(len(self._unused))]
            self._executor.prepare(pending.wanted, self._vocabulary, unused)
        except RequestError as error:
            return error
        except Exception:  # a fault of ours, which may pass (no process, no memory), and of nobody else's request
            if pending.users:  # nobody waits where the service was closed meanwhile
                log.error("%s", traceback.format_exc())
            return _own_fault()
        return None


def _own_fault() -> RequestError:
    return RequestError("The grammar could not be compiled: the engine failed.", FIELD, FAILED)
