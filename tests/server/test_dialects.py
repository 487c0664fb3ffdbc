"""Tools, thoughts and forms in Responses and in Anthropic's messages, judged by the official clients."""

import json
from typing import Any

import anthropic
import openai
import pytest
from pydantic import BaseModel

from tests.server.fake_engine import EOS, FakeEngine, FakeTemplate
from tests.server.serving import Serving
from tests.waiting import HANG_S

pytestmark = pytest.mark.plain

MODEL = "org/fake-model"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
WEATHER = '<tool_call>{"name": "get_weather", "arguments": {"city": "Rome", "days": 2}}</tool_call>'
NOW = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
ANSWER = f"<think>Hm, so.</think>I look. {WEATHER}{NOW}"
ARGUMENTS = {"city": "Rome", "days": 2}
FLAT: Any = [
    {"type": "function", "name": "get_weather", "parameters": SCHEMA, "description": "d"},
    {"type": "function", "name": "now", "parameters": None},
]
THEIRS: Any = [{"name": "get_weather", "input_schema": SCHEMA}, {"name": "now", "input_schema": {"type": "object"}}]
HI: Any = [{"role": "user", "content": "hi"}]


class Saying(Serving):
    """A server whose model says `text`."""

    def __init__(self, text: str, source: str = "<tool_call></think>", opening: str = "") -> None:
        self.made = FakeEngine(lambda prompt, index: [*self.made.tokenizer.encode(text), EOS], max_model_len=2048)
        self.rendering = FakeTemplate(self.made.tokenizer, source, opening)
        super().__init__(self.made, template=self.rendering)

    def claude(self) -> anthropic.Anthropic:
        return anthropic.Anthropic(base_url=self.url, api_key="none", max_retries=0, timeout=HANG_S)

    def grammar(self) -> str:
        form = self.made.params[-1].structured_outputs
        return (form and form.grammar) or ""


def shape(response: Any) -> list[Any]:
    """What items say, without their ids."""
    return [
        (item.type, item.content[0].text)
        if item.type in ("reasoning", "message")
        else (item.type, item.name, json.loads(item.arguments))
        for item in response.output
    ]


ITEMS = [
    ("reasoning", "Hm, so."),
    ("message", "I look."),
    ("function_call", "get_weather", ARGUMENTS),
    ("function_call", "now", {}),
]


def test_responses_plain_and_streamed() -> None:
    with Saying(ANSWER) as running, running.client() as client:
        plain = client.responses.create(model=MODEL, input="hi", tools=FLAT)
        assert shape(plain) == ITEMS
        assert plain.usage is not None
        assert plain.usage.output_tokens_details.reasoning_tokens == len("Hm, so.")
        assert [tool.name for tool in plain.tools if tool.type == "function"] == ["get_weather", "now"]
        assert len({item.id for item in plain.output}) == 4
        with client.responses.stream(model=MODEL, input="hi", tools=FLAT) as stream:
            events = list(stream)
            final = stream.get_final_response()
        assert shape(final) == ITEMS
        kinds = [event.type for event in events]
        assert kinds.count("response.output_item.added") == kinds.count("response.output_item.done") == 4
        deltas = [event for event in events if event.type == "response.function_call_arguments.delta"]
        assert len(deltas) > 5
        assert "".join(event.delta for event in deltas if event.output_index == 2) == json.dumps(ARGUMENTS)
        assert "".join(event.delta for event in events if event.type == "response.reasoning_text.delta") == "Hm, so."
        assert [event.sequence_number for event in events] == list(range(len(events)))
        stored = client.responses.retrieve(final.id)
        assert shape(stored) == ITEMS


def test_responses_go_on_with_the_answers_of_tools() -> None:
    with Saying(ANSWER) as running, running.client() as client:
        first = client.responses.create(model=MODEL, input="hi", tools=FLAT)
        calls: Any = [item for item in first.output if item.type == "function_call"]
        told: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "noon"} for call in calls]
        client.responses.create(model=MODEL, input=told, previous_response_id=first.id, tools=FLAT)
        remembered = running.rendering.messages
        items: Any = [{"role": "user", "content": "hi"}, *[item.model_dump() for item in first.output], *told]
        client.responses.create(model=MODEL, input=items, tools=FLAT)
        for messages in (remembered, running.rendering.messages):
            user, said, *answers = messages
            assert user["content"] == "hi"
            assert said["reasoning_content"] == "Hm, so."
            assert [call["function"]["name"] for call in said["tool_calls"]] == ["get_weather", "now"]
            assert [(one["role"], one["tool_call_id"], one["content"]) for one in answers] == [
                ("tool", call.call_id, "noon") for call in calls
            ]


class City(BaseModel):
    """What is asked for."""

    name: str


def test_responses_parse_and_choose() -> None:
    with Saying('so</think>{"name": "Rome"}', opening="<think>\n") as running, running.client() as client:
        parsed = client.responses.parse(model=MODEL, input="hi", text_format=City)
        assert parsed.output_parsed == City(name="Rome")
        assert '"name"' in running.grammar()
    with Saying(NOW) as running, running.client() as client:
        choices: list[Any] = ["required", {"type": "function", "name": "now"}]
        choices.append({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "now"}]})
        for choice in choices:
            answer = client.responses.create(model=MODEL, input="hi", tools=FLAT, tool_choice=choice)
            assert shape(answer) == [("function_call", "now", {})]
            assert ("get_weather" in running.grammar()) == (choice == "required")
        none = client.responses.create(model=MODEL, input="hi", tools=FLAT, tool_choice="none")
        assert none.output_text == NOW


def test_a_broken_call_is_text_in_both() -> None:
    text = '<tool_call>{"name": "now", "arguments": {"a": ]}}</tool_call>'
    with Saying(text) as running, running.client() as client, running.claude() as claude:
        plain = client.responses.create(model=MODEL, input="hi", tools=FLAT)
        assert (shape(plain), plain.status) == ([("message", text)], "completed")
        *_, last = client.responses.create(model=MODEL, input="hi", tools=FLAT, stream=True)
        assert last.type == "response.completed"
        assert last.response.output_text == text
        theirs = claude.messages.create(model=MODEL, max_tokens=99, messages=HI, tools=THEIRS)
        assert ([block.type for block in theirs.content], theirs.stop_reason) == (["text"], "end_turn")


def blocks(message: Any) -> list[Any]:
    return [
        (block.type, getattr(block, "thinking", None) or getattr(block, "text", None) or (block.name, block.input))
        for block in message.content
    ]


BLOCKS = [
    ("thinking", "Hm, so."),
    ("text", "I look."),
    ("tool_use", ("get_weather", ARGUMENTS)),
    ("tool_use", ("now", {})),
]


def test_messages_plain_and_streamed() -> None:
    with Saying(ANSWER) as running, running.claude() as claude:
        given: Any = {"model": MODEL, "max_tokens": 500, "messages": HI, "tools": THEIRS}
        plain = claude.messages.create(**given)
        assert (blocks(plain), plain.stop_reason) == (BLOCKS, "tool_use")
        with claude.messages.stream(**given) as stream:
            events = list(stream)
            final = stream.get_final_message()
        assert (blocks(final), final.stop_reason) == (BLOCKS, "tool_use")
        pieces = [
            event.delta.partial_json
            for event in events
            if event.type == "content_block_delta" and event.delta.type == "input_json_delta" and event.index == 2
        ]
        assert len(pieces) > 5
        assert "".join(pieces) == json.dumps(ARGUMENTS)
        kinds = [event.type for event in events]
        assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 4
        assert plain.usage.output_tokens == final.usage.output_tokens
        counted = claude.messages.count_tokens(model=MODEL, messages=HI, tools=THEIRS)
        assert counted.input_tokens > 0
        assert len(running.rendering.kwargs["tools"]) == 2


def test_messages_go_on_with_the_answers_of_tools() -> None:
    with Saying(ANSWER) as running, running.claude() as claude:
        given: Any = {"model": MODEL, "max_tokens": 500, "tools": THEIRS}
        first = claude.messages.create(**given, messages=HI)
        used = [block for block in first.content if block.type == "tool_use"]
        told: Any = [
            {"type": "tool_result", "tool_use_id": used[0].id, "content": [{"type": "text", "text": "sun"}]},
            {"type": "tool_result", "tool_use_id": used[1].id, "content": "noon", "is_error": True},
            {"type": "text", "text": "and?"},
        ]
        sent: Any = [*HI, {"role": "assistant", "content": first.content}, {"role": "user", "content": told}]
        claude.messages.create(**given, messages=sent)
        _, said, sun, noon, more = running.rendering.messages
        assert said["reasoning_content"] == "Hm, so."
        assert said["content"] == [{"type": "text", "text": "I look."}]
        assert [call["id"] for call in said["tool_calls"]] == [block.id for block in used]
        assert (sun["role"], sun["tool_call_id"], sun["content"][0]["text"]) == ("tool", used[0].id, "sun")
        assert [part["text"] for part in noon["content"]] == ["Error: ", "noon"]
        assert (more["role"], more["content"][0]["text"]) == ("user", "and?")


def test_messages_as_a_coding_agent_sends_them() -> None:
    """With marks for caches everywhere, thoughts, what to clear from the context, and a length beyond the context."""
    cached = {"cache_control": {"type": "ephemeral"}}
    body = {
        "model": MODEL,
        "max_tokens": 32_000,
        "temperature": 1,
        "stream": True,
        "system": [{"type": "text", "text": "Be brief.", **cached}, {"type": "text", "text": "Use tools.", **cached}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi", **cached}]}],
        "tools": [{**tool, **cached} for tool in THEIRS],
        "thinking": {"type": "enabled", "budget_tokens": 31_999},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "metadata": {"user_id": "user_1_account__session_2"},
        "output_config": {"effort": "medium"},
    }
    with Saying(ANSWER) as running, running.http(headers={"anthropic-beta": "context-management-2025-06-27"}) as http:
        answer = http.post("/v1/messages?beta=true", json=body)
    assert answer.status_code == 200, answer.text
    kinds = [line.removeprefix("event: ") for line in answer.text.splitlines() if line.startswith("event: ")]
    assert (kinds[0], kinds[-1], kinds.count("content_block_stop")) == ("message_start", "message_stop", 4)


def test_messages_choose_and_keep_to_a_form() -> None:
    given: Any = {"model": MODEL, "max_tokens": 400, "messages": HI, "tools": THEIRS}
    with Saying(NOW + NOW) as running, running.claude() as claude:
        for choice in ({"type": "any"}, {"type": "tool", "name": "now"}):
            answer = claude.messages.create(**given, tool_choice={**choice, "disable_parallel_tool_use": True})
            assert blocks(answer) == [("tool_use", ("now", {}))]
            assert ("get_weather" in running.grammar()) == (choice["type"] == "any")
        auto = claude.messages.create(**given, tool_choice={"type": "auto", "disable_parallel_tool_use": True})
        assert len(auto.content) == 1
        none = claude.messages.create(**given, tool_choice={"type": "none"})
        assert blocks(none) == [("text", NOW + NOW)]
    with Saying('{"name": "Rome"}', "<tool_call>") as running, running.claude() as claude:
        form: Any = {"format": {"type": "json_schema", "schema": City.model_json_schema()}}
        claude.messages.create(model=MODEL, max_tokens=99, messages=HI, output_config=form)
        wanted = running.made.params[-1].structured_outputs
        assert wanted is not None and isinstance(wanted.json, dict) and "name" in wanted.json["properties"]


def test_messages_turn_thinking_on_and_off() -> None:
    source = "</think>{% if enable_thinking is defined and not enable_thinking %}{% endif %}"
    with Saying("a</think>b", source) as running, running.claude() as claude:
        given: Any = {"model": MODEL, "max_tokens": 99, "messages": HI}
        for wanted, on in (({"type": "disabled"}, False), ({"type": "enabled", "budget_tokens": 1024}, True)):
            claude.messages.create(**given, thinking=wanted)
            assert running.rendering.kwargs["enable_thinking"] is on
        claude.messages.create(**given)
        assert "enable_thinking" not in running.rendering.kwargs
    with Saying("a", "plain") as running, running.claude() as claude:
        claude.messages.create(**given, thinking={"type": "enabled", "budget_tokens": 1024})


def test_cut_calls_say_so() -> None:
    with Saying(WEATHER) as running, running.client() as client, running.claude() as claude:
        cut = client.responses.create(model=MODEL, input="hi", tools=FLAT, max_output_tokens=60)
        (item,) = cut.output
        assert (cut.status, item.type) == ("incomplete", "function_call")
        assert item.status == "incomplete"
        theirs = claude.messages.create(model=MODEL, max_tokens=60, messages=HI, tools=THEIRS)
        assert (theirs.stop_reason, blocks(theirs)) == ("max_tokens", [("tool_use", ("get_weather", {}))])
        with pytest.raises(openai.BadRequestError):
            client.responses.create(model=MODEL, input="hi", tools=FLAT, tool_choice={"type": "function", "name": "x"})
