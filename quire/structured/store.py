"""`GrammarStore`: the compiled grammars of one rank. The engine says which of them may go (`engine/grammars.py`).

`prepare` compiles and is called from a thread of its own; `start` is called by the step loop and finds what is ready.
"""

import threading
from collections.abc import Collection

from quire.base.heap import give_back_freed
from quire.messages.structured import StructuredOutputsParams, grammar_key
from quire.structured.llguidance import LLBackend
from quire.structured.matcher import Backend, Grammar, Matcher, Vocabulary


class GrammarStore:
    """Grammars by key."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._grammars: dict[str, Grammar] = {}
        self._backend: Backend | None = None

    def __len__(self) -> int:
        return len(self._grammars)

    @property
    def backend(self) -> Backend:
        """The library; there is one since the first `prepare`."""
        assert self._backend is not None, "a grammar is used before any was prepared"
        return self._backend

    def prepare(
        self, wanted: StructuredOutputsParams | None, vocabulary: Vocabulary, unused: Collection[str] = ()
    ) -> None:
        """Drop grammars that are not needed, by key, and compile `wanted`, unless it is there. Raises RequestError.

        Where nothing is wanted, what the dropped ones took goes back to the system.
        """
        with self._lock:
            for key in unused:
                self._grammars.pop(key, None)
        if wanted is None:
            give_back_freed()
            return
        if self._backend is None:
            self._backend = LLBackend(vocabulary)
        key = _key(wanted)
        if key not in self._grammars:
            made = self._backend.compile(wanted)
            with self._lock:
                self._grammars[key] = made

    def start(self, wanted: StructuredOutputsParams) -> Matcher:
        """A matcher at the start of the grammar.

        It is there as long as a sequence that runs uses it. A plan on its way to a rank may begin one that has
        ended since, whose grammar is gone; that alone is compiled again, here, and not kept: nobody would say that it
        may go.
        """
        with self._lock:
            found = self._grammars.get(_key(wanted))
        return (found or self.backend.compile(wanted)).start()


def _key(wanted: StructuredOutputsParams) -> str:
    key = grammar_key(wanted)
    assert key is not None
    return key
