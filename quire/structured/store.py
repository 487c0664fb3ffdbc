"""`GrammarStore`: the compiled grammars of one rank, a bounded number of them.

`prepare` compiles and is called from a thread of its own; `start` is called by the step loop and finds what is ready.
"""

import threading
from collections import OrderedDict

from quire.messages.structured import StructuredOutputsParams, grammar_key
from quire.structured.llguidance import LLBackend
from quire.structured.matcher import Backend, Grammar, Matcher, Vocabulary

KEPT = 64
"""Grammars kept for the next request; those in use live on with their sequences."""


class GrammarStore:
    """Grammars by key, the one used longest ago leaves first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._grammars: OrderedDict[str, Grammar] = OrderedDict()
        self._backend: Backend | None = None

    def __len__(self) -> int:
        return len(self._grammars)

    @property
    def backend(self) -> Backend:
        """The library; there is one since the first `prepare`."""
        assert self._backend is not None, "a grammar is used before any was prepared"
        return self._backend

    def prepare(self, wanted: StructuredOutputsParams, vocabulary: Vocabulary) -> None:
        """Compile a grammar, unless it is there. Raises RequestError."""
        if self._backend is None:
            self._backend = LLBackend(vocabulary)
        self._find(wanted)

    def start(self, wanted: StructuredOutputsParams) -> Matcher:
        """A matcher at the start of the grammar.

        A sequence that comes back after `KEPT` other grammars finds its own gone and has it compiled again, here: the
        judge has found that to be quick.
        """
        return self._find(wanted).start()

    def _find(self, wanted: StructuredOutputsParams) -> Grammar:
        key = grammar_key(wanted)
        assert key is not None
        with self._lock:
            found = self._grammars.get(key)
            if found is not None:
                self._grammars.move_to_end(key)
                return found
        made = self.backend.compile(wanted)
        with self._lock:
            self._grammars[key] = made
            while len(self._grammars) > KEPT:
                self._grammars.popitem(last=False)
        return made
