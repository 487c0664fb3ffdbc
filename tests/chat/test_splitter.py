"""Answers are told apart in the same way wherever they are cut, in linear time, and bad calls are content."""

import gc
import importlib
import json
import time
from itertools import pairwise
from pkgutil import iter_modules
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.base.errors import ConfigError
from quire.chat import formats
from quire.chat.events import Arguments, CallBroken, CallStart, Event, ParsedAnswer, fold, merge
from quire.chat.formats.base import ToolFormat
from quire.chat.formats.recognise import TOOLS as FORMATS
from quire.chat.formats.recognise import reasoning_format, tool_format
from quire.chat.splitter import StreamSplitter
from tests.chat.tool_texts import ANSWERS, CONTENT, TOOLS, Answer
from tests.timing import grows_evenly

pytestmark = pytest.mark.plain


def splitter(format: str, *, thinking: bool = False) -> StreamSplitter:
    return StreamSplitter(tool_format(format, ""), reasoning_format("think", ""), TOOLS, thinking=thinking)


def split(made: StreamSplitter, pieces: list[str], *, cut: bool = False) -> list[Event]:
    found = [event for piece in pieces for event in made.push(piece)]
    return merge([*found, *made.finish(cut=cut)])


def calls(parsed: ParsedAnswer) -> list[tuple[str, dict[str, Any]]]:
    return [(call.name, json.loads(call.arguments)) for call in parsed.calls]


def name(answer: Answer) -> str:
    return f"{answer.format} {answer.text[:24]!r}"


def test_every_format_is_in_the_tables() -> None:
    modules = [importlib.import_module(f"{formats.__name__}.{each.name}") for each in iter_modules(formats.__path__)]
    found = {value.name for module in modules for value in vars(module).values() if isinstance(value, ToolFormat)}
    assert found == {format.name for format in FORMATS}, "enter it in recognise.py"
    assert found == {answer.format for answer in ANSWERS}, "write one of its answers in tool_texts.py"


@pytest.mark.parametrize("answer", ANSWERS, ids=name)
def test_calls(answer: Answer) -> None:
    parsed = fold(split(splitter(answer.format), [answer.text]))
    assert calls(parsed) == answer.calls
    assert parsed.content == answer.content
    assert parsed.reasoning == ""


@pytest.mark.parametrize("answer", CONTENT, ids=name)
def test_what_is_no_call_is_content(answer: Answer) -> None:
    parsed = fold(split(splitter(answer.format), [answer.text]))
    assert parsed.calls == []
    assert parsed.content == answer.text


@pytest.mark.parametrize("answer", [*ANSWERS, *CONTENT], ids=name)
def test_cuts_change_nothing(answer: Answer) -> None:
    text = "<think>\nI <b> think.\n</think>\n\n" + answer.text
    whole = split(splitter(answer.format), [text])
    assert split(splitter(answer.format), list(text)) == whole
    for cut in range(1, len(text)):
        assert split(splitter(answer.format), [text[:cut], text[cut:]]) == whole, text[:cut]


@pytest.mark.parametrize("answer", ANSWERS, ids=name)
def test_an_answer_that_is_cut_short_is_a_beginning_of_the_whole(answer: Answer) -> None:
    whole = fold(split(splitter(answer.format), [answer.text]))
    for end in range(len(answer.text)):
        part = fold(split(splitter(answer.format), [answer.text[:end]], cut=True))
        for got, full in zip(part.calls, whole.calls, strict=False):
            assert got.name == full.name
            assert full.arguments.startswith(got.arguments), answer.text[:end]
        ended = fold(split(splitter(answer.format), [answer.text[:end]]))
        assert calls(ended) == answer.calls[: len(ended.calls)], "a call that ends early is none"


_WORDS = sorted(
    {*"abc{}[]()\"'\\,:=<>\n 1", *(marker for form in FORMATS for marker in (*form.markers, *form.openers))}
)
_MORE = [
    '"name"',
    "get_weather",
    '{"name": "now", "arguments": {',
    "<function=",
    "<parameter=",
    "</parameter>",
    "<think>",
]


@settings(max_examples=250, deadline=None)
@given(
    st.sampled_from([form.name for form in FORMATS]),
    st.lists(st.sampled_from([*_WORDS, *_MORE]), max_size=30).map("".join),
    st.lists(st.integers(0, 200), max_size=8),
    st.booleans(),
)
def test_any_text_any_cuts(format: str, text: str, cuts: list[int], thinking: bool) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(edges)]
    whole = split(splitter(format, thinking=thinking), [text])
    assert split(splitter(format, thinking=thinking), pieces) == whole
    for call in fold(whole).calls:
        assert isinstance(json.loads(call.arguments), dict)


def test_arguments_come_as_they_are_written() -> None:
    made = splitter("hermes")
    made.push('<tool_call>{"name": "write", "arguments": ')
    assert made.push('{"path": "abc') == [CallStart(0, "write"), Arguments(0, '{"path": "abc')]
    assert made.push("def") == [Arguments(0, "def")]
    coder = splitter("qwen3_coder")
    coder.push("<tool_call><function=write><parameter=path>\nx")
    assert coder.push('yz"') == [Arguments(0, 'yz\\"')]


def test_a_call_that_breaks_after_it_began() -> None:
    made = splitter("hermes")
    text = '<tool_call>{"name": "f", "arguments": {"a": '
    assert made.push(text)[0] == CallStart(0, "f")
    assert made.push("]")[0] == CallBroken(0, text)


@pytest.mark.parametrize(
    ("text", "thinking", "reasoning", "content"),
    [
        ("<think>\nso\n\nso \n</think>\n\nYes. ", False, "so\n\nso", "Yes. "),
        ("so\n</think>\n\nYes.", True, "so", "Yes."),
        ("so <thi", True, "so <thi", ""),
        ("\n<think></think>Yes.", False, "", "Yes."),
        ("Yes. <think> no </think>", False, "", "Yes. <think> no </think>"),
        (" Yes.", False, "", " Yes."),
        ("<thin", False, "", "<thin"),
        (' <think>a</think> <tool_call>{"name": "now"}</tool_call>', False, "a", ""),
        ('<think><tool_call>{"name": "now"}</tool_call>', False, '<tool_call>{"name": "now"}</tool_call>', ""),
    ],
)
def test_reasoning(text: str, thinking: bool, reasoning: str, content: str) -> None:
    for pieces in ([text], list(text)):
        parsed = fold(split(splitter("hermes", thinking=thinking), pieces))
        assert (parsed.reasoning, parsed.content) == (reasoning, content)


def test_harmony_tells_thoughts_from_words_all_through() -> None:
    text = (
        "<|channel|>analysis<|message|>Let me <|see.<|end|><|start|>assistant<|channel|>commentary<|message|>A plan."
        "<|end|><|start|>assistant<|channel|>analysis<|message|> More.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Yes. <b> \n"
    )
    made = tool_format("harmony", "")
    for pieces in ([text], list(text), [text[:40], text[40:]]):
        found = split(StreamSplitter(made, None, {}), pieces)
        parsed = fold(found)
        assert (parsed.reasoning, parsed.content) == ("Let me <|see. More.", "A plan.Yes. <b> \n")


FLOODS = [
    "<|channel|>",
    "<|channel|>final<|message|>a",
    "<|tool_call>call:f{a:",
    "<minimax:tool_call>",
    "[[[[((((",
    "<tool_call>",
    "<tool_call>{",
    "{",
    " ",
    '"',
    "[TOOL_CALLS][",
    "<function=",
    "now(",
    "<",
    "9",
    "\\",
]
STARTS = ["", "[now(a=", '<tool_call>{"name": "now", "arguments": {"a": ', "<tool_call><function=now><parameter=a>"]


def split_twice(format: str, text: str) -> float:
    """Seconds of processor time that a text takes, as one piece and in small ones; without the garbage collector,
    which looks at whatever the other tests have left.
    """
    gc.disable()
    start = time.thread_time()
    split(splitter(format), [text])
    split(splitter(format), [text[i : i + 40] for i in range(0, len(text), 40)])
    seconds = time.thread_time() - start
    gc.enable()
    return seconds


@pytest.mark.parametrize(
    "format", ["hermes", "qwen3_coder", "pythonic", "mistral", "llama3_json", "gemma4", "harmony", "minimax_m2"]
)
def test_linear_time(format: str) -> None:
    for flood in FLOODS:
        for start in STARTS:

            def seconds(size: int, start: str = start, flood: str = flood) -> float:
                return split_twice(format, (start + flood * (size // len(flood)))[:size])

            assert grows_evenly(seconds, 10_000), (start, flood)


@pytest.mark.parametrize(
    ("template", "tools", "reasoning"),
    [
        ('<tool_call>\\n{"name": <function-name>}', "hermes", None),
        ("<tool_call>\\n<function=x>\\n<parameter=y> </think>", "qwen3_coder", "think"),
        ("<tool_call>{f}<arg_key>{k}</arg_key><arg_value> <think></think>", "glm45", "think"),
        ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜> </think>", "deepseek", "think"),
        ("<|tool_call_begin|><|tool_call_argument_begin|>", "kimi_k2", None),
        ("[AVAILABLE_TOOLS] [TOOL_CALLS] [THINK] [/THINK]", "mistral", "mistral"),
        ('Respond in the format {"name": function name, "parameters": dictionary of argument}', "llama3_json", None),
        ("<|python_start|>", "pythonic", None),
        ("<seed:think></seed:think>", None, "seed_oss"),
        ("<|start|><|channel|><|message|> to=functions. <|call|>", "harmony", "harmony"),
        ('<|tool_call>call: <|"|> <|channel>thought<channel|>', "gemma4", "gemma4"),
        ("<start_function_call>call:<escape>", "functiongemma", None),
        ("<|tool_call|> <tool_call> Here is my response:", "granite", "granite"),
        ('<minimax:tool_call><invoke name="x"> </think>', "minimax_m2", "think"),
        ("<tool_calls>", "minimax", None),
        ("{{ messages }}", None, None),
    ],
)
def test_recognised_by_the_template(template: str, tools: str | None, reasoning: str | None) -> None:
    found, thoughts = tool_format(None, template), reasoning_format(None, template)
    assert (found.name if found else None, thoughts.name if thoughts else None) == (tools, reasoning)
    assert tool_format("none", template) is None


def test_a_flag_overrides_and_must_be_known() -> None:
    made = tool_format("qwen3_xml", "[TOOL_CALLS]")
    assert made is not None
    assert made.name == "qwen3_coder"
    with pytest.raises(ConfigError, match="tool_call_parser: 'nope' is unknown; use one of harmony"):
        tool_format("nope", "")
    with pytest.raises(ConfigError, match="reasoning_parser"):
        reasoning_format("hermes", "")
