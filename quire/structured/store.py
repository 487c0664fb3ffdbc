"""`GrammarStore`: the compiled grammars of one rank. The engine says which of them may go (`engine/grammars.py`).

`prepare` compiles and is called from a thread of its own; `start` is called by the step loop and finds what is ready.
"""

import threading
from collections.abc import Collection

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

    def prepare(self, wanted: StructuredOutputsParams, vocabulary: Vocabulary, unused: Collection[str] = ()) -> None:
        """Drop what nobody uses any more, by key, and compile a grammar, unless it is there. Raises RequestError."""
        with self._lock:
            for key in unused:
                self._grammars.pop(key, None)
        if self._backend is None:
            self._backend = LLBackend(vocabulary)
        self._find(wanted)

    def start(self, wanted: StructuredOutputsParams) -> Matcher:
        """A matcher at the start of the grammar.

        It is there as long as a sequence that has not ended uses it. A plan on its way to a rank may begin one that has
        ended since, whose grammar is gone; that alone is compiled again, here.
        """
        return self._find(wanted).start()

    def _find(self, wanted: StructuredOutputsParams) -> Grammar:
        key = grammar_key(wanted)
        assert key is not None
        with self._lock:
            found = self._grammars.get(key)
        if found is not None:
            return found
        made = self.backend.compile(wanted)
        with self._lock:
            self._grammars[key] = made
        return made
