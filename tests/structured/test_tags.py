"""Structural tags, and texts that spell special tokens: neither leads a sequence into a dead end."""

import json
from typing import Any

import pytest

from quire.base.errors import RequestError
from quire.messages.structured import StructuredOutputsParams
from quire.structured.llguidance import LLBackend
from quire.structured.matcher import Vocabulary
from tests.server.fake_engine import EOS, byte_tokenizer

pytestmark = pytest.mark.plain

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
JSON = {"type": "json_schema", "json_schema": SCHEMA}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    tokenizer = byte_tokenizer("<call>", "</call>")
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(tokenizer._tokenizer.to_str())
    return LLBackend(Vocabulary(str(path), tokenizer.vocab_size, (EOS,))), tokenizer


def fits(library: Any, wanted: StructuredOutputsParams, text: str, *, whole: bool = True) -> bool:
    """Whether a grammar lets a text through, as the tokenizer writes it; `whole`: and lets it end there."""
    backend, tokenizer = library
    matcher = backend.compile(wanted).start()
    ids = tokenizer.encode(text, add_special_tokens=False)
    taken = matcher.inner.try_consume_tokens(ids)
    return taken == len(ids) and (matcher.inner.is_accepting() or not whole)


def tag(**fields: Any) -> StructuredOutputsParams:
    return StructuredOutputsParams(structural_tag=json.dumps({"type": "structural_tag", **fields}))


OLD = tag(
    structures=[{"begin": f"<f={n}>", "schema": SCHEMA, "end": "</f>"} for n in "xy"],
    triggers=["<f="],
)
TAG = {"begin": "<call>", "content": JSON, "end": "</call>"}
TRIGGERED = {"type": "triggered_tags", "triggers": ["<call>"], "tags": [TAG]}
LIST = {"type": "tags_with_separator", "tags": [TAG], "separator": ", "}
ANSWER = {"type": "or", "elements": [{"type": "const_string", "value": "yes"}, {"type": "regex", "pattern": "n/?o"}]}
EMPTY = {"type": "regex", "pattern": ""}
THINK = {"type": "tag", "begin": "[", "content": {"type": "any_text"}, "end": "]"}
ONE = '<call>{"a": 1}</call>'


@pytest.mark.parametrize(
    ("wanted", "good", "bad"),
    [
        (OLD, ['Hi <f=x>{"a": 1}</f> and <f=y>{"a": 2}</f>.', "Hi"], ['<f=x>{"b": 1}</f>', "<f=z>", "a <f="]),
        (tag(format=TRIGGERED), [f"Hi {ONE}{ONE}!", ""], ['<call>{"b"']),
        (tag(format={**TRIGGERED, "at_least_one": True, "stop_after_first": True}), [f"a{ONE}"], ["a", f"{ONE}b"]),
        (tag(format={**TRIGGERED, "stop_after_first": True}), ["", "a", f"a{ONE}"], [f"{ONE}b", "<call>b"]),
        (tag(format={"type": "regex", "pattern": r"a\/b/c"}), ["a/b/c"], ["a", "a/b", r"a\/b/c"]),
        (tag(format={"type": "sequence", "elements": [EMPTY, ANSWER]}), ["yes"], ["", "//"]),
        (tag(format=EMPTY), [""], ["a"]),
        (tag(format=LIST), ["", ONE, f"{ONE}, {ONE}"], [f"{ONE}{ONE}", "a"]),
        (tag(format={**LIST, "at_least_one": True, "stop_after_first": True}), [ONE], ["", f"{ONE}, {ONE}"]),
        (tag(format={"type": "sequence", "elements": [THINK, ANSWER]}), ["[so]yes", "[]n/o"], ["yes", "[a]b"]),
        (tag(format={"type": "any_text"}), ["a", ""], []),
    ],
)
def test_tags(library: Any, wanted: StructuredOutputsParams, good: list[str], bad: list[str]) -> None:
    for text in good:
        assert fits(library, wanted, text), text
    for text in bad:
        assert not fits(library, wanted, text), text


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"structures": [], "triggers": ["a"]},
        {"structures": [{"begin": "b", "schema": {}, "end": ""}], "triggers": ["a"]},
        {"structures": [{"begin": "a", "schema": 5, "end": ""}], "triggers": ["a"]},
        {"structures": [{"begin": 5, "schema": {}, "end": ""}], "triggers": [""]},
        {"format": 5},
        {"format": {"type": "qwen_xml"}},
        {"format": {"type": "tag", "begin": "a", "content": {"type": "nope"}, "end": "b"}},
    ],
)
def test_what_is_no_tag_is_refused(library: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="structural tag"):
        library[0].compile(tag(**fields))


def test_tags_are_nested_so_deep_and_no_deeper(library: Any) -> None:
    nested: dict[str, Any] = {"type": "any_text"}
    for _ in range(100):
        nested = {"type": "sequence", "elements": [nested]}
    with pytest.raises(RequestError, match="nested at most"):
        library[0].compile(tag(format=nested))


@pytest.mark.parametrize(
    "wanted",
    [
        StructuredOutputsParams(choice=["<call>x"]),
        StructuredOutputsParams(regex="<call>x"),
        StructuredOutputsParams(grammar='start: "<call>x"'),
        StructuredOutputsParams(json={"const": "<call>x"}),
        StructuredOutputsParams(json=json.dumps({"const": "<call>x"}), disable_any_whitespace=True),
        StructuredOutputsParams(grammar='start: "<call>x"', frame='start: "a" @form'),
    ],
)
def test_a_text_that_spells_a_special_token_can_be_written(library: Any, wanted: StructuredOutputsParams) -> None:
    backend, tokenizer = library
    matcher = backend.compile(wanted).start()
    text = bytearray()
    while not matcher.complete and len(text) < 40:
        mask = matcher.inner.compute_bitmask()
        open = [id for id in range(tokenizer.vocab_size) if mask[id // 8] >> id % 8 & 1]
        if EOS in open:
            break
        matcher.take([open[0]])
        assert matcher.error is None, bytes(text)
        text += tokenizer.token_bytes(open[0])
    assert b"<call>x" in bytes(text)


LENIENT = ["(a+)+b", "(a|aa)*c", "[a-z]{1,100}", "(x+x+)+y"]
"""Expressions that back-tracking engines choke on; this one reads each byte once."""


def test_expressions_that_choke_others_are_served(library: Any) -> None:
    assert fits(library, StructuredOutputsParams(regex=LENIENT[0]), "a" * 500 + "b")
    assert fits(library, StructuredOutputsParams(regex=LENIENT[1]), "a" * 501 + "c")
    assert fits(library, StructuredOutputsParams(regex=LENIENT[3]), "x" * 500 + "y")
    assert not fits(library, StructuredOutputsParams(regex=LENIENT[0]), "a" * 500 + "c")
    assert not fits(library, StructuredOutputsParams(regex=LENIENT[2]), "a" * 101)
