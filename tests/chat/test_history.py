"""Earlier calls of tools reach a template in the form that it reads."""

import json
from typing import Any

import pytest

from quire.chat.history import fit_answer, wants_text

pytestmark = pytest.mark.plain

JOINED = "{{ '<sep>' + tool['function']['name'] + '\\n' + tool['function']['arguments'] + '\\n```' }}"


def said(arguments: Any, **more: Any) -> dict[str, Any]:
    """An assistant's message that calls a tool."""
    return {"role": "assistant", "content": None, "tool_calls": [{"function": {"arguments": arguments}}], **more}


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (JOINED, True),
        ("{{ tool_call.arguments | tojson }}", False),
        ("{% if tool_call.arguments is string %}{{ tool_call.arguments }}{% endif %}", False),
        ("{% for k, v in tool_call.arguments.items() %}", False),
        ("{{ messages }}", False),
    ],
)
def test_told_by_the_template(source: str, text: bool) -> None:
    assert wants_text(source) is text


@pytest.mark.parametrize(
    ("given", "as_text", "fitted"),
    [
        ('{"a": 1}', False, {"a": 1}),
        ("", False, {}),
        ({"a": "ü"}, True, '{"a": "ü"}'),
        ('{"a": 1}', True, '{"a": 1}'),
        ('{"a": ', False, '{"a": '),
        ("[1]", False, "[1]"),
        ("[" * 5000, False, "[" * 5000),
        (5, False, 5),
    ],
)
def test_arguments(given: Any, as_text: bool, fitted: Any) -> None:
    message = said(given)
    before = json.dumps(message)
    assert fit_answer(message, as_text=as_text) == said(fitted)
    assert json.dumps(message) == before, "the client's message stays as it is"


def test_reasoning_has_two_names() -> None:
    assert fit_answer({"role": "assistant", "reasoning": "so"}, as_text=False)["reasoning_content"] == "so"
    assert "reasoning_content" not in fit_answer({"role": "user", "reasoning": "so"}, as_text=False)


@pytest.mark.parametrize("calls", [[{}], [None], {}, "x", [{"function": "f"}]])
def test_what_is_no_call_is_passed_on(calls: Any) -> None:
    message = {"role": "assistant", "content": "", "tool_calls": calls}
    assert fit_answer(message, as_text=False) == message
