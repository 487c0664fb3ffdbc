"""Messages of clients: group M of the catalogue of bad inputs."""

import pytest

from quire.base.errors import RequestError
from quire.chat.messages import MAX_MESSAGES, parse_messages

pytestmark = pytest.mark.plain
USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("raw", "param"),
    [
        ([], "messages"),
        (None, "messages"),
        ({}, "messages"),
        ("hi", "messages"),
        (["hi"], "messages[0]"),
        ([{"content": "hi"}], "messages[0].role"),
        ([{"role": "robot", "content": "hi"}], "messages[0].role"),
        ([{"role": 5, "content": "hi"}], "messages[0].role"),
        ([{"role": None, "content": "hi"}], "messages[0].role"),
        ([USER, {"role": "user", "content": None}], "messages[1].content"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "assistant", "content": None}], "messages[0].content"),
        ([{"role": "user", "content": 3}], "messages[0].content"),
        ([{"role": "user", "content": []}], "messages[0].content"),
        ([{"role": "user", "content": [{}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "nope"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": ["a"]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": "a\ud800"}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "text", "text": "\udc00"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": [{"type": "refusal", "refusal": "no"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": None, "refusal": "no"}], "messages[0].content"),
        ([{**USER, "name": 5}], "messages[0].name"),
        ([USER] * (MAX_MESSAGES + 1), "messages"),
    ],
)
def test_refused_with_the_field(raw: object, param: str) -> None:
    with pytest.raises(RequestError) as error:
        parse_messages(raw)
    assert error.value.param == param
    assert error.value.message.startswith(param)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": ""},
        {"role": "developer", "content": "x", "name": "n" * 65},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "4", "tool_call_id": "1"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": ""}]},
        {"role": "user", "content": "x", "name": None},
    ],
)
def test_accepted_as_they_are(message: dict) -> None:
    [parsed] = parse_messages([message])
    assert parsed == message
    assert parsed is not message


def test_parts_lose_what_templates_do_not_know() -> None:
    part = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
    [parsed] = parse_messages([{"role": "user", "content": [part]}])
    assert parsed["content"] == [{"type": "text", "text": "a"}]


def test_what_an_assistant_has_refused_with_is_what_it_has_said() -> None:
    parts = [{"type": "text", "text": "Sorry."}, {"type": "refusal", "refusal": "No."}]
    answers = [{"role": "assistant", "content": None, "refusal": "No."}, {"role": "assistant", "content": parts}]
    whole, pieces = parse_messages(answers)
    assert whole["content"] == "No."
    assert pieces["content"] == [{"type": "text", "text": "Sorry."}, {"type": "text", "text": "No."}]
