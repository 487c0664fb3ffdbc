"""What a rank keeps of compiled grammars: nothing that the engine does not know to be there."""

import pytest

from quire.messages.structured import StructuredOutputsParams, grammar_key
from quire.structured.store import GrammarStore
from tests.structured.test_checker import VOCABULARY

pytestmark = pytest.mark.plain

ONE, OTHER = StructuredOutputsParams(regex="a+"), StructuredOutputsParams(regex="b+")


def test_a_row_that_begins_after_its_grammar_was_dropped_leaves_none_behind() -> None:
    store = GrammarStore()
    store.prepare(ONE, VOCABULARY)
    store.prepare(OTHER, VOCABULARY, [grammar_key(ONE) or ""])
    assert len(store) == 1
    assert store.start(ONE).error is None
    assert len(store) == 1


def test_what_is_dropped_goes_back_to_the_system_where_nothing_is_compiled_after_it(monkeypatch) -> None:
    given_back: list[int] = []
    store = GrammarStore()
    monkeypatch.setattr("quire.structured.store.give_back_freed", lambda: given_back.append(len(store)))
    store.prepare(ONE, VOCABULARY)
    store.prepare(None, VOCABULARY, [grammar_key(ONE) or ""])
    assert given_back == [0]
