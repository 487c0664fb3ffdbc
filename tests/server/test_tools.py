"""Tools and reasoning, judged by the official client: plain, streamed, several calls, and the answers of tools."""

import json
from contextlib import ExitStack
from typing import Any

import openai
import pytest

from quire.base.errors import ConfigError
from quire.config.fields import ServerConfig
from quire.messages.structured import StructuredOutputsParams
from quire.server.app import create_app
from tests.chat.tool_texts import ANSWERS, TOOLS, Answer
from tests.server.fake_engine import EOS, FakeEngine, FakeTemplate, byte_tokenizer
from tests.server.serving import Serving

pytestmark = pytest.mark.plain

MODEL = "org/fake-model"
HI: Any = [{"role": "user", "content": "hi"}]
OFFER: Any = [{"type": "function", "function": {"name": name, "parameters": TOOLS[name]}} for name in TOOLS]
NOW = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'


class Saying:
    """A server whose model says `text`."""

    def __init__(self, text: str, source: str = "<tool_call></think>", opening: str = "", **settings: Any) -> None:
        engine = FakeEngine(lambda prompt, index: [*engine.tokenizer.encode(text), EOS], max_model_len=2048)
        self.engine = engine
        self.template = FakeTemplate(engine.tokenizer, source, opening)
        self.serving = Serving(engine, template=self.template, **settings)

    def wanted(self) -> StructuredOutputsParams:
        """What the last answer had to be."""
        found = self.engine.params[-1].structured_outputs
        assert found is not None
        return found

    def __enter__(self) -> openai.OpenAI:
        with ExitStack() as stack:
            stack.enter_context(self.serving)
            client = stack.enter_context(self.serving.client())
            self._exit = stack.pop_all()
        return client

    def __exit__(self, *error: Any) -> None:
        self._exit.__exit__(*error)


def calls(message: Any) -> list[tuple[str, dict[str, Any]]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or []]


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: f"{answer.format} {answer.text[:24]!r}")
def test_plain_and_streamed(answer: Answer) -> None:
    with Saying(answer.text, tool_call_parser=answer.format) as client:
        choice = client.chat.completions.create(model=MODEL, messages=HI, tools=OFFER).choices[0]
        assert calls(choice.message) == answer.calls
        assert (choice.message.content or "") == answer.content
        assert choice.finish_reason == "tool_calls"
        ids = [call.id for call in choice.message.tool_calls or []]
        assert len(set(ids)) == len(ids)
        assert all(len(id) == 9 if answer.format == "mistral" else len(id) <= 40 for id in ids)
        with client.chat.completions.stream(model=MODEL, messages=HI, tools=OFFER) as stream:
            events = list(stream)
            streamed = stream.get_final_completion().choices[0]
        assert calls(streamed.message) == answer.calls
        assert (streamed.message.content or "") == answer.content
        assert streamed.finish_reason == "tool_calls"
        assert sum(event.type == "tool_calls.function.arguments.delta" for event in events) > len(answer.calls)


def test_the_chunks_of_a_call() -> None:
    text = 'Well. <tool_call>{"name": "write", "arguments": {"path": "abc"}}</tool_call>'
    with Saying(text) as client:
        options: Any = {"include_usage": True}
        chunks = list(
            client.chat.completions.create(model=MODEL, messages=HI, tools=OFFER, stream=True, stream_options=options)
        )
    *chunks, usage = chunks
    assert usage.usage is not None
    assert usage.usage.completion_tokens == len(text) + 1
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == "Well."
    first, *more = [delta.tool_calls[0] for delta in deltas if delta.tool_calls]
    assert (first.index, first.type, first.function and first.function.name) == (0, "function", "write")
    assert first.id
    assert first.function
    assert first.function.arguments == ""
    assert all(call.id is None and call.function and call.function.name is None for call in more)
    pieces = [call.function.arguments or "" for call in more if call.function]
    assert "".join(pieces) == '{"path": "abc"}'
    assert len(pieces) > 10, "arguments come as they are written"


def test_a_round_trip_with_the_answer_of_a_tool() -> None:
    with (made := Saying(NOW)) as client:
        first: Any = client.chat.completions.create(model=MODEL, messages=HI, tools=OFFER).choices[0].message
        assert made.template.kwargs["tools"] == OFFER
        assert first.tool_calls
        answer: Any = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "noon"}
        client.chat.completions.create(model=MODEL, messages=[*HI, first, answer], tools=OFFER)
        _, said, told = made.template.messages
        assert said["tool_calls"][0]["function"]["name"] == "now"
        assert said["content"] is None
        assert (told["role"], told["content"], told["tool_call_id"]) == ("tool", "noon", answer["tool_call_id"])


def test_parallel_tool_calls_false_lets_one_through() -> None:
    with Saying(NOW + "\n" + NOW) as client:
        for parallel, count in ((True, 2), (False, 1)):
            given: Any = {"model": MODEL, "messages": HI, "tools": OFFER, "parallel_tool_calls": parallel}
            whole = client.chat.completions.create(**given)
            assert len(whole.choices[0].message.tool_calls or []) == count
            started = [
                call
                for chunk in client.chat.completions.create(**given, stream=True)
                for call in chunk.choices[0].delta.tool_calls or []
                if call.id
            ]
            assert len(started) == count


def test_no_tools_no_calls() -> None:
    with (made := Saying(NOW)) as client:
        for more in ({}, {"tools": OFFER, "tool_choice": "none"}):
            choice = client.chat.completions.create(model=MODEL, messages=HI, **more).choices[0]
            assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (NOW, None, "stop")
            assert "tools" not in made.template.kwargs


def test_allowed_tools_are_the_only_ones() -> None:
    allowed: Any = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "now"}}]}
    choice: Any = {"type": "allowed_tools", "allowed_tools": allowed}
    with (made := Saying(NOW)) as client:
        client.chat.completions.create(model=MODEL, messages=HI, tools=OFFER, tool_choice=choice)
        assert [tool["function"]["name"] for tool in made.template.kwargs["tools"]] == ["now"]


def test_cut_by_max_tokens() -> None:
    text = '<tool_call>{"name": "write", "arguments": {"path": "abcdefgh"}}</tool_call>'
    with Saying(text) as client:
        given: Any = {"model": MODEL, "messages": HI, "tools": OFFER, "max_tokens": 60}
        choice = client.chat.completions.create(**given).choices[0]
        assert choice.finish_reason == "length"
        assert choice.message.tool_calls
        whole = choice.message.tool_calls[0].function.arguments
        chunks = list(client.chat.completions.create(**given, stream=True))
        assert chunks[-1].choices[0].finish_reason == "length"
        calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
        assert "".join((call.function and call.function.arguments) or "" for call in calls) == whole
        assert '{"path": "abcdefgh"}'.startswith(whole)


def test_broken_calls_are_content() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"a": ]}}</tool_call>'
    with Saying(text) as client:
        choice = client.chat.completions.create(model=MODEL, messages=HI, tools=OFFER).choices[0]
        assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (text, None, "stop")
        chunks = list(client.chat.completions.create(model=MODEL, messages=HI, tools=OFFER, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
        assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_stop_string_still_ends_the_text() -> None:
    with Saying(f"one two three {NOW}") as client:
        choice = client.chat.completions.create(model=MODEL, messages=HI, tools=OFFER, stop="two").choices[0]
        assert (choice.message.content, choice.finish_reason) == ("one ", "stop")
        assert choice.message.tool_calls is None


def test_special_tokens_that_mark_calls_are_seen_and_no_others() -> None:
    engine = FakeEngine(max_model_len=512)
    engine.tokenizer = tokenizer = byte_tokenizer("[TOOL_CALLS]", "<odd>")
    said = [*tokenizer.encode("A<odd>[TOOL_CALLS]now{}"), EOS]
    assert len(said) == 9
    engine.script = lambda prompt, index: said
    with Serving(engine, template=FakeTemplate(tokenizer, "[TOOL_CALLS]")) as running, running.client() as client:
        message = client.chat.completions.create(model=MODEL, messages=HI, tools=OFFER).choices[0].message
        assert (calls(message), message.content) == ([("now", {})], "A")
        assert client.chat.completions.create(model=MODEL, messages=HI).choices[0].message.content == "Anow{}"


@pytest.mark.parametrize("opening", ["", "<think>\n"])
def test_reasoning(opening: str) -> None:
    text = "so\n</think>\n\nYes. " + NOW
    with Saying(text if opening else "<think>\n" + text, opening=opening) as client:
        for more, content in (({"tools": OFFER}, "Yes."), ({}, "Yes. " + NOW)):
            given: Any = {"model": MODEL, "messages": HI, **more}
            message: Any = client.chat.completions.create(**given).choices[0].message
            assert (message.reasoning, message.reasoning_content, message.content) == ("so", "so", content)
            deltas: Any = [chunk.choices[0].delta for chunk in client.chat.completions.create(**given, stream=True)]
            for name in ("reasoning", "reasoning_content"):
                assert "".join(getattr(delta, name, None) or "" for delta in deltas) == "so"
            assert "".join(delta.content or "" for delta in deltas) == content


def test_a_form_of_content_leaves_thoughts_what_they_are() -> None:
    with (made := Saying('so</think>\n\n{"a": 1}', opening="<think>\n")) as client:
        form: Any = {"type": "json_object"}
        given: Any = {"model": MODEL, "messages": HI, "response_format": form}
        message: Any = client.chat.completions.create(**given).choices[0].message
        assert (message.content, message.reasoning) == ('{"a": 1}', "so")
        assert "%json" in (made.wanted().grammar or "")
        hidden = client.chat.completions.create(**given, extra_body={"include_reasoning": False}).choices[0].message
        assert (hidden.content, hasattr(hidden, "reasoning")) == ('{"a": 1}', False)
    with (made := Saying('{"a": 1}', opening="<think>\n\n</think>\n\n")) as client:
        message = client.chat.completions.create(**given).choices[0].message
        assert (message.content, hasattr(message, "reasoning")) == ('{"a": 1}', False)
        assert made.wanted().json_object


def test_required_and_named_calls_are_ruled_by_a_grammar() -> None:
    for choice, reason in (("required", "tool_calls"), ({"type": "function", "function": {"name": "now"}}, "stop")):
        with (made := Saying(NOW)) as client:
            given: Any = {"model": MODEL, "messages": HI, "tools": OFFER, "tool_choice": choice}
            for answer in (
                client.chat.completions.create(**given).choices[0],
                client.chat.completions.stream(**given).__enter__().get_final_completion().choices[0],
            ):
                assert calls(answer.message) == [("now", {})]
                assert answer.finish_reason == reason
            source = made.wanted().grammar or ""
            assert ("get_weather" in source) == (choice == "required")
            assert len(made.template.kwargs["tools"]) == len(OFFER), "the prompt's prefix stays the same"


def test_only_strict_tools_rule_a_free_answer() -> None:
    with (made := Saying(NOW)) as client:
        client.chat.completions.create(model=MODEL, messages=HI, tools=OFFER)
        assert made.engine.params[-1].structured_outputs is None
        strict: Any = [{"type": "function", "function": {**OFFER[2]["function"], "strict": True}}]
        client.chat.completions.create(model=MODEL, messages=HI, tools=strict)
        assert "tool_call" in (made.wanted().grammar or "")


@pytest.mark.parametrize("opening", ["", "<think>\n"])
def test_tokens_of_thoughts_are_counted(opening: str) -> None:
    thoughts = "one two"
    text = f"{thoughts}</think>Yes."
    with Saying(text if opening else f"<think>{text}", opening=opening) as client:
        given: Any = {"model": MODEL, "messages": HI}
        details: list[Any] = [client.chat.completions.create(**given).usage]
        options: Any = {"include_usage": True}
        details.append(list(client.chat.completions.create(**given, stream=True, stream_options=options))[-1].usage)
        for usage in details:
            assert usage.completion_tokens_details.reasoning_tokens == len(thoughts)
        cut: Any = client.chat.completions.create(**given, max_tokens=len(opening and " ") or 10).usage
        assert cut.completion_tokens_details.reasoning_tokens == (1 if opening else 3)


def test_effort_and_budget() -> None:
    source = "</think>{% if enable_thinking is defined and not enable_thinking %}{% endif %}"
    with (made := Saying("a</think>b", source=source)) as client:
        given: Any = {"model": MODEL, "messages": HI}
        for effort, on in (("none", False), ("low", True)):
            client.chat.completions.create(**given, reasoning_effort=effort)
            assert made.template.kwargs["enable_thinking"] is on
        client.chat.completions.create(**given, extra_body={"enable_thinking": False})
        assert made.template.kwargs["enable_thinking"] is False
        with pytest.raises(openai.BadRequestError, match="no token of its own"):
            client.chat.completions.create(**given, extra_body={"thinking_token_budget": 5})
    with (made := Saying("a", source="</think>{{ reasoning_effort }}")) as client:
        client.chat.completions.create(**given, reasoning_effort="high")
        assert made.template.kwargs["reasoning_effort"] == "high"
        with pytest.raises(openai.BadRequestError, match="cannot be turned off"):
            client.chat.completions.create(**given, extra_body={"enable_thinking": False})


def test_enable_thinking_reaches_the_template() -> None:
    with (made := Saying("Yes.", opening="<think>\n\n</think>\n\n")) as client:
        extra = {"chat_template_kwargs": {"enable_thinking": False}}
        message = client.chat.completions.create(model=MODEL, messages=HI, extra_body=extra).choices[0].message
        assert made.template.kwargs["enable_thinking"] is False
        assert message.content == "Yes."
        assert not hasattr(message, "reasoning")


def test_logprobs_and_ids_go_along() -> None:
    with Saying(f"<think>a</think>b{NOW}") as client:
        given: Any = {"model": MODEL, "messages": HI, "tools": OFFER, "logprobs": True, "n": 2}
        extra = {"return_token_ids": True}
        chunks = list(client.chat.completions.create(**given, stream=True, extra_body=extra))
        whole: Any = client.chat.completions.create(**given, extra_body=extra)
        for choice in whole.choices:
            own = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == choice.index]
            ids = [id for part in own for id in getattr(part, "token_ids", None) or []]
            assert ids == choice.token_ids
            logprobs = [entry for part in own if part.logprobs for entry in part.logprobs.content or []]
            assert [entry.token for entry in logprobs] == [entry.token for entry in choice.logprobs.content]
            assert choice.finish_reason == "tool_calls"


def test_a_model_without_a_format_says_so() -> None:
    with Saying("Hi.", source="") as client:
        with pytest.raises(openai.BadRequestError, match="shows no known way to call them") as error:
            client.chat.completions.create(model=MODEL, messages=HI, tools=OFFER)
        assert (error.value.param, error.value.code) == ("tools", "unsupported_parameter")


def test_a_wrong_parser_stops_the_server() -> None:
    with pytest.raises(ConfigError, match="'nope' is unknown"):
        create_app(FakeEngine(), ServerConfig(tool_call_parser="nope"))
