"""`GrammarService`: which grammars are checked, compiled and dropped, and who waits for them.

Every grammar is checked when its first request comes, so that a bad one is refused before anything runs. Compiled are
those of the sequences that run or are served next; the others are held until their turn comes. Owned by `EngineCore`;
it knows request ids and grammars, never tokens. `GrammarWorker` does the work beside the step loop.
"""

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import replace
from itertools import count

from quire.base.errors import RequestError
from quire.engine.grammar_worker import GrammarWorker, PendingGrammar
from quire.messages.structured import StructuredOutputsParams
from quire.messages.wire import FAILED, Refused
from quire.scheduler.scheduler import Scheduler

KEPT = 64
"""Compiled grammars beyond one for each sequence that runs: of those served next, and kept for the next request."""

REMEMBERED = 256
"""Refusals that are remembered, so that the same bad grammar costs nothing a second time."""


class GrammarService:
    """Grammars of one engine.

    Args:
        scheduler: told to hold sequences back and to let them go.
        worker: checks and compiles.

    Attributes:
        most: grammars that are compiled at a time.
        descriptor: readable when `collect` has something to do.
    """

    def __init__(self, scheduler: Scheduler, worker: GrammarWorker) -> None:
        self._scheduler = scheduler
        self._worker = worker
        self._pending: dict[str, PendingGrammar] = {}  # the worker has it
        self._held: dict[str, PendingGrammar] = {}  # it is good, and not compiled
        self._ready: OrderedDict[str, PendingGrammar] = OrderedDict()  # it is compiled; used longest ago stands first
        self._refused: OrderedDict[str, RequestError] = OrderedDict()
        self._numbers = count()
        self.most = scheduler.limits.max_num_seqs + KEPT
        self.descriptor = worker.descriptor

    @property
    def busy(self) -> bool:
        """Whether a grammar is being checked or compiled."""
        return bool(self._pending)

    def refuse_bad(self, key: str | None) -> None:
        """Raise RequestError if a request's grammar is known to be bad; None is of a free text."""
        refusal = self._refused.get(key or "")
        if refusal is not None:
            raise RequestError(refusal.message, refusal.param, refusal.code)

    def want(self, key: str | None, wanted: StructuredOutputsParams | None) -> None:
        """See to the grammar, if any, of a request that the scheduler has taken, before it plans again."""
        if wanted is None or key is None or key in self._held:
            return
        if key in self._pending:
            self._pending[key].unwanted = False
            return
        if key in self._ready:
            self._ready.move_to_end(key)
            return
        self._scheduler.hold(key)
        room = len(self._ready) + len(self._pending) < self.most
        self._submit(PendingGrammar(next(self._numbers), key, wanted, room))

    def arrange(self) -> None:
        """Drop what is needed no more and have compiled what is needed next: before each plan, and after aborts."""
        for key in self._scheduler.take_given_up_grammars():
            if key in self._pending:
                self._pending[key].unwanted = True
            elif self._held.pop(key, None) is not None:
                self._scheduler.ready(key)
        if len(self._ready) > KEPT:
            used = self._scheduler.used_grammars
            unused = [key for key in self._ready if key not in used]
            self._drop(unused[: max(0, len(unused) - KEPT)])
        if self._held:
            self._let_go()

    def collect(self) -> list[Refused]:
        """Take in what is done: sequences may start, or their requests are refused."""
        return [refused for pending in self._worker.collect() for refused in self._finish(pending)]

    def wait(self) -> None:
        """Wait until `collect` has something to do; for `LLM`."""
        self._worker.wait()

    def wait_for_all(self) -> list[Refused]:
        """Wait until every grammar was checked, and is compiled or held; for `LLM`."""
        refused: list[Refused] = []
        while self.busy:
            self.wait()
            refused += self.collect()
        return refused

    def close(self) -> None:
        """End what works beside the loop."""
        self._worker.close()

    def _submit(self, pending: PendingGrammar) -> None:
        pending.unwanted = False  # it may have been, before it was held
        self._pending[pending.key] = pending
        self._worker.submit(pending)

    def _finish(self, pending: PendingGrammar) -> list[Refused]:
        key = pending.key
        del self._pending[key]
        if pending.error is None and not pending.compiled and key in self._scheduler.used_grammars:
            if pending.checked:
                self._held[key] = pending
            else:  # it was unwanted, and somebody has asked for it again meanwhile
                self._submit(pending)
            return []
        if pending.compiled:
            self._ready[key] = pending
        self._scheduler.ready(key)
        return [] if pending.error is None else self._refuse(key, pending.error)

    def _refuse(self, key: str, error: RequestError) -> list[Refused]:
        if error.code != FAILED:
            self._refused[key] = error
            if len(self._refused) > REMEMBERED:
                self._refused.popitem(last=False)
        users = self._scheduler.users(key)
        for request_id in users:
            self._scheduler.abort(request_id)
        return [Refused(request_id, error.message, error.param, error.code) for request_id in users]

    def _let_go(self) -> None:
        """Have compiled what is held, for those who are served next."""
        soon = self._scheduler.next_grammars(self.most)
        for key in soon:
            if key in self._held:
                if not self._make_room(soon):
                    return
                pending = self._held.pop(key)
                pending.room = True
                self._submit(pending)

    def _make_room(self, soon: Collection[str]) -> bool:
        """Whether one more may be compiled, if need be in the place of one whose turn comes later, or never."""
        if len(self._ready) + sum(pending.room for pending in self._pending.values()) < self.most:
            return True
        used, leaving = self._scheduler.used_grammars, self._scheduler.leaving_grammars
        others = (key for key in self._ready if key not in soon and key not in leaving)
        key = min(others, key=used.__contains__, default=None)
        if key is None:
            return False  # those that are being compiled, or that a plan in flight may need, take the rest
        ready = self._ready[key]
        self._drop([key])
        if key in used:
            self._held[key] = replace(ready, number=next(self._numbers), room=False, compiled=False)
            self._scheduler.hold(key)
        return True

    def _drop(self, keys: Collection[str]) -> None:
        if keys:
            for key in keys:
                del self._ready[key]
            self._worker.drop(keys)
