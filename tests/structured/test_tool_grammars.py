"""`required`, named and strict tools: whatever a grammar lets through, the splitter reads as calls of these schemas."""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from quire.base.errors import RequestError
from quire.chat.events import fold
from quire.chat.formats.recognise import TOOLS as FORMATS
from quire.config.fields import ServerConfig
from quire.messages.structured import StructuredOutputsParams
from quire.server.app import create_app
from quire.server.conversation.answer_parser import AnswerParser, markers_of
from quire.server.conversation.frame import framed
from quire.server.conversation.reasoning import ReasoningState
from quire.server.conversation.tools import ToolSet
from quire.server.service import Service
from quire.structured.llguidance import LLBackend
from quire.structured.matcher import Vocabulary
from tests.server.fake_engine import EOS, FakeEngine, FakeTemplate, byte_tokenizer

pytestmark = pytest.mark.plain

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "sure": {"type": "boolean"},
        "where": {"anyOf": [{"$ref": "#/$defs/place"}, {"type": "null"}]},
    },
    "required": ["city", "where"],
    "additionalProperties": False,
    "$defs": {
        "place": {
            "type": "object",
            "properties": {"x": {"type": "number"}, "y": {"type": "array", "items": {"type": "boolean"}}},
            "required": ["x"],
            "additionalProperties": False,
        }
    },
}
NOW: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
SCHEMAS = {"get_weather": WEATHER, "now": NOW}
LISTED = [{"type": "function", "function": {"name": name, "parameters": SCHEMAS[name]}} for name in SCHEMAS]
FORM = {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]}

ENFORCED = [form.name for form in FORMATS if form.calls is not None]
TEMPLATES = {"mistral": ["", "[ARGS]"], "deepseek": ["", "```json"]}
CASES = [(name, source) for name in ENFORCED for source in TEMPLATES.get(name, [""])]


class Rig:
    """A service of one format, and the grammar library with the same tokens, so that texts can be sampled."""

    def __init__(self, path: Path, format: str, source: str = "", *, specials: bool = True) -> None:
        engine = FakeEngine()
        reasoning = "harmony" if format == "harmony" else "think"
        config = ServerConfig(tool_call_parser=format, reasoning_parser=reasoning)
        template = FakeTemplate(engine.tokenizer, source)
        service: Service = create_app(engine, config, template).state.service
        if specials:
            engine.tokenizer = byte_tokenizer(*dict.fromkeys(markers_of(service, ToolSet(LISTED, SCHEMAS))))
        self.service = service
        self.tokenizer = engine.tokenizer
        file = path / "tokenizer.json"
        file.write_text(engine.tokenizer._tokenizer.to_str())
        self.size = engine.tokenizer.vocab_size
        self.backend = LLBackend(Vocabulary(str(file), self.size, (EOS,)))

    def sample(self, wanted: StructuredOutputsParams, seed: int, most: int = 700) -> str | None:
        """A text that the grammar lets through, by chance; None if it does not end. Ends are taken gladly."""
        chance = random.Random(seed)
        matcher = self.backend.compile(wanted).start()
        ids: list[int] = []
        ends = {*self.tokenizer.encode('"}]<,\n[){', add_special_tokens=False), *range(EOS + 1, self.size)}
        while not matcher.complete:
            if len(ids) == most:
                return None
            mask = matcher.inner.compute_bitmask()
            open = [id for id in range(self.size) if mask[id // 8] >> id % 8 & 1]
            assert open, (self.tokenizer.decode(ids, skip_special_tokens=False), matcher.error)
            glad = [id for id in open if id in ends]
            id = chance.choice(glad if glad and chance.random() < 0.5 else open)
            id = EOS if EOS in open and chance.random() < 0.1 else id
            if id == EOS:
                break
            matcher.take([id])
            assert matcher.error is None
            ids.append(id)
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    def hear(self, offer: ToolSet, thinking: ReasoningState, text: str) -> Any:
        """What the server makes of a text."""
        splitter = AnswerParser(self.service, offer, thinking).choice_parser()._splitter
        return fold([*splitter.push(text), *splitter.finish()])

    def answers(
        self, offer: ToolSet, form: StructuredOutputsParams | None, seeds: int, *states: ReasoningState
    ) -> Iterator[tuple[int, str, Any]]:
        """Of each seed whose text ends, with `states` in turn: the text, and what the server makes of it."""
        for seed in range(seeds):
            thinking = states[seed % len(states)]
            wanted = framed(self.service, offer, form, thinking, None)
            assert wanted is not None
            text = self.sample(wanted, seed)
            if text is not None:
                parsed = self.hear(offer, thinking, text)
                check(parsed)
                yield seed, text, parsed


def check(parsed: Any) -> None:
    for call in parsed.calls:
        jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])


@pytest.mark.parametrize(("format", "source"), CASES)
@pytest.mark.parametrize("specials", [True, False])
def test_required_calls_are_calls(tmp_path: Path, format: str, source: str, specials: bool) -> None:
    if format == "harmony" and not specials:
        pytest.skip("its channels are tokens in every tokenizer")
    rig = Rig(tmp_path, format, source, specials=specials)
    counts = set()
    for parallel in (True, False):
        offer = ToolSet(LISTED, SCHEMAS, parallel=parallel, required=True, strict=frozenset(SCHEMAS))
        # Some texts are too long for several calls by chance; an answer by harmony ends with its call.
        aim = (parallel, parallel and format not in ("qwen3_coder", "glm45", "minimax_m2", "harmony"))
        for seed, text, parsed in rig.answers(offer, None, 60, ReasoningState.NONE, ReasoningState.MAY):
            assert parsed.calls, text
            assert parsed.content == "", text
            counts.add((parallel, len(parsed.calls) > 1))
            if seed >= 4 and aim in counts:
                break
        assert aim in counts
    assert (False, True) not in counts


@pytest.mark.parametrize(("format", "source"), CASES)
def test_strict_tools_hold_among_words(tmp_path: Path, format: str, source: str) -> None:
    rig = Rig(tmp_path, format, source)
    offer = ToolSet(LISTED, SCHEMAS, strict=frozenset(SCHEMAS))
    called = False
    for seed, _, parsed in rig.answers(
        offer, None, 80, ReasoningState.MAY if format == "harmony" else ReasoningState.OPEN
    ):
        called |= bool(parsed.calls)
        if seed >= 5 and called:
            break
    assert called


@pytest.mark.parametrize(("format", "source"), CASES)
def test_a_call_or_content_of_a_form(tmp_path: Path, format: str, source: str) -> None:
    rig = Rig(tmp_path, format, source)
    offer = ToolSet(LISTED, SCHEMAS)
    seen = set()
    for seed, text, parsed in rig.answers(offer, StructuredOutputsParams(json=FORM), 60, ReasoningState.MAY):
        assert bool(parsed.calls) != bool(parsed.content), text
        if parsed.content:
            jsonschema.validate(json.loads(parsed.content), FORM)
        seen.add(bool(parsed.calls))
        if seed >= 5 and True in seen:
            break
    assert True in seen, "calls remain possible"


TAG = {"structures": [{"begin": "<n>", "schema": FORM, "end": "</n>"}], "triggers": ["<n>"]}
OWN = (
    (StructuredOutputsParams(grammar='start: "yes" | "no"'), r"yes|no"),
    (StructuredOutputsParams(grammar='root ::= "a" b+\nb ::= "b" | "c"'), r"a[bc]+"),
    (StructuredOutputsParams(structural_tag=json.dumps({"type": "structural_tag", **TAG})), r"(?s).*"),
)


@pytest.mark.parametrize(("format", "source"), CASES)
def test_a_call_or_content_of_a_grammar_of_ones_own(tmp_path: Path, format: str, source: str) -> None:
    rig = Rig(tmp_path, format, source)
    offer = ToolSet(LISTED, SCHEMAS)
    for form, pattern in OWN:
        seen = set()
        for seed, text, parsed in rig.answers(offer, form, 80, ReasoningState.MAY):
            if parsed.content:
                assert re.fullmatch(pattern, parsed.content.strip()), text
            seen.add(bool(parsed.calls))
            if seed >= 5 and len(seen) == 2:
                break
        assert True in seen or form.structural_tag is not None, "calls remain possible"


def test_a_named_function_is_called_once(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "hermes")
    offer = ToolSet(LISTED, {"now": NOW}, parallel=False, required=True, named=True)
    wanted = framed(rig.service, offer, None, ReasoningState.NONE, None)
    assert wanted is not None
    parsed = rig.hear(offer, ReasoningState.NONE, rig.sample(wanted, 0) or "")
    assert [(call.name, json.loads(call.arguments)) for call in parsed.calls] == [("now", {})]


def test_the_form_follows_the_thoughts_and_a_budget_ends_them(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "hermes")
    none = ToolSet()
    for form in (
        StructuredOutputsParams(choice=["yes", "no"]),
        StructuredOutputsParams(regex="yes|no"),
        StructuredOutputsParams(grammar='start: "yes" | "no"'),
        StructuredOutputsParams(json={"enum": ["yes", "no"]}),
    ):
        for seed in range(4):
            wanted = framed(rig.service, none, form, ReasoningState.OPEN, 5)
            assert wanted is not None
            text = rig.sample(wanted, seed)
            assert text is not None
            thoughts, end, rest = text.partition("</think>")
            assert end
            assert len(rig.tokenizer.encode(thoughts)) <= 5
            assert rest.strip(' \n"') in ("yes", "no")
        assert framed(rig.service, none, form, ReasoningState.CLOSED, None) is form
    free = framed(rig.service, none, None, ReasoningState.OPEN, 3)
    assert free is not None
    text = rig.sample(free, 1)
    assert text is not None
    assert len(text.partition("</think>")[0]) <= 3
    assert framed(rig.service, none, None, ReasoningState.OPEN, None) is None


def test_what_cannot_be_enforced_is_refused(tmp_path: Path) -> None:
    coder = Rig(tmp_path, "qwen3_coder")
    for schema in ({"anyOf": [NOW]}, {"properties": {"a": {"type": "string", "pattern": "x"}}}):
        offer = ToolSet(LISTED, {"now": schema}, required=True, strict=frozenset({"now"}))
        with pytest.raises(RequestError, match="strict"):
            framed(coder.service, offer, None, ReasoningState.NONE, None)
        loose = ToolSet(LISTED, {"now": schema}, required=True)
        assert framed(coder.service, loose, None, ReasoningState.NONE, None) is not None
    plain = Rig(tmp_path, "hermes", specials=False)
    with pytest.raises(RequestError, match="no token of its own"):
        framed(plain.service, ToolSet(), None, ReasoningState.OPEN, 5)


def test_a_loose_schema_keeps_what_can_be_said(tmp_path: Path) -> None:
    rig = Rig(tmp_path, "hermes")
    schema = {
        "properties": {"a": {"type": "string", "pattern": "(?=x)y"}, "b": {"$ref": "http://x/y"}, "c": {"const": 3}},
        "required": ["a", "c"],
        "not": {"required": ["z"]},
    }
    offer = ToolSet(LISTED, {"now": schema}, required=True, parallel=False)
    wanted = framed(rig.service, offer, None, ReasoningState.NONE, None)
    assert wanted is not None
    text = next(text for seed in range(20) if (text := rig.sample(wanted, seed)))
    assert json.loads(rig.hear(offer, ReasoningState.NONE, text).calls[0].arguments)["c"] == 3
