"""Anthropic's messages, judged by the official client."""

import asyncio
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest

from tests.server.fake_engine import ANSWER, EOS, FakeEngine
from tests.server.serving import Serving
from tests.waiting import HANG_S, wait_for

pytestmark = pytest.mark.plain

MODEL = "org/fake-model"
HI: Any = [{"role": "user", "content": "hi"}]
RENDERED = "user: hi\nassistant:"
TOKENS = len(ANSWER.encode()) + 1
KEY = "sk-anthropic"


def client_of(running: Serving) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=running.url, api_key=KEY, auth_token=None, max_retries=0, timeout=HANG_S)


@pytest.fixture(scope="module")
def guarded() -> Iterator[Serving]:
    with Serving(api_key=KEY) as running:
        yield running


@pytest.fixture(scope="module")
def claude(guarded: Serving) -> Iterator[anthropic.Anthropic]:
    with client_of(guarded) as made:
        yield made


def rendered(running: Serving, http: httpx.Client, **fields: Any) -> str:
    """What the engine is given for a request."""
    seen: list[list[int]] = []
    running.engine.script = lambda prompt, index: seen.append(prompt) or [EOS]  # type: ignore[func-returns-value]
    body = {"model": MODEL, "max_tokens": 4, "messages": HI, **fields}
    answer = http.post("/v1/messages", json=body)
    assert answer.status_code == 200, answer.text
    return running.engine.tokenizer.decode(seen[0])


def test_a_plain_answer(claude: anthropic.Anthropic) -> None:
    answer = claude.messages.create(model=MODEL, max_tokens=50, messages=HI)
    assert (answer.type, answer.role, answer.model) == ("message", "assistant", MODEL)
    assert answer.id.startswith("msg_")
    (block,) = answer.content
    assert block.type == "text"
    assert block.text == ANSWER
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    usage = answer.usage
    assert usage.cache_read_input_tokens == 2
    assert usage.input_tokens + usage.cache_read_input_tokens == len(RENDERED)
    assert usage.output_tokens == TOKENS


def test_a_stream_says_the_same_as_a_plain_answer(claude: anthropic.Anthropic) -> None:
    with claude.messages.stream(model=MODEL, max_tokens=50, messages=HI) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
        assert stream.get_final_text() == ANSWER
    plain = claude.messages.create(model=MODEL, max_tokens=50, messages=HI)
    left_out = {"id", "parsed_output", "content"}
    assert final.model_dump(exclude=left_out) == plain.model_dump(exclude=left_out)
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]


def test_the_events_of_a_stream(guarded: Serving) -> None:
    headers = {"x-api-key": KEY, "anthropic-version": "2023-06-01"}
    body = {"model": MODEL, "max_tokens": 50, "messages": HI, "stream": True}
    with guarded.http(headers=headers) as http:
        answer = http.post("/v1/messages?beta=true", json=body)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    pairs = [block.split("\n") for block in answer.text.strip().split("\n\n")]
    names = [event.removeprefix("event: ") for event, _ in pairs]
    assert all(data.startswith(f'data: {{"type":"{name}"') for name, (_, data) in zip(names, pairs, strict=True))
    assert names[:3] == ["message_start", "content_block_start", "ping"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(names[3:-3]) == {"content_block_delta"}
    assert "[DONE]" not in answer.text


def test_why_an_answer_ended(claude: anthropic.Anthropic) -> None:
    cut = claude.messages.create(model=MODEL, max_tokens=3, messages=HI)
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 3)
    stopped = claude.messages.create(model=MODEL, max_tokens=50, messages=HI, stop_sequences=["no", "wör"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "wör")
    assert stopped.content[0].model_dump()["text"] == "Hello "
    with Serving(FakeEngine(lambda prompt, index: [65], max_model_len=40)) as small, client_of(small) as client:
        full = client.messages.create(model=MODEL, max_tokens=1000, messages=HI)
    assert full.stop_reason == "model_context_window_exceeded"


def test_system_blocks_and_turns_become_a_chat() -> None:
    with Serving() as running, running.http() as http:
        assert rendered(running, http, system="be kind") == f"system: be kind\n{RENDERED}"
        blocks = [{"type": "text", "text": "be", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "k"}]
        assert rendered(running, http, system=blocks) == f"system: be+k\n{RENDERED}"
        twice = [{"role": "user", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "b"}]}]
        assert rendered(running, http, messages=twice) == "user: a+b\nassistant:", "turns in a row are one"
        started = [*HI, {"role": "assistant", "content": "I say"}]
        assert rendered(running, http, messages=started) == "user: hi\nassistant: I say", "the answer goes on"
        assert running.template is not None
        assert running.template.kwargs["continued"]


def test_tokens_are_counted_without_generating(guarded: Serving, claude: anthropic.Anthropic) -> None:
    before = len(guarded.engine.submitted)
    counted = claude.messages.count_tokens(model=MODEL, messages=HI, system="x")
    assert counted.input_tokens == len(f"system: x\n{RENDERED}")
    assert len(guarded.engine.submitted) == before


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": ...}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0].type 'image'"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"system": 3}, "system"),
        ({"system": [{"type": "text", "text": 3}]}, "system[0].text"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"temperature": 3}, "temperature"),
        ({"top_k": "3"}, "top_k"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name"),
        ({"tools": [{"name": "f", "input_schema": 5}]}, "tools[0].input_schema"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": 5}, "tools"),
        ({"tool_choice": {"type": "some"}}, "tool_choice"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "messages[0].content[0].tool_use_id"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "a"}]}]}, "content[0].name"),
        ({"messages": [{"role": "assistant", "content": [{"type": "thinking"}]}]}, "content[0].thinking"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}, "messages[0].content[0].type 'tool_use'"),
        ({"thinking": {"type": "deep"}}, "thinking"),
        ({"thinking": {"type": "enabled", "budget_tokens": "5"}}, "budget_tokens"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"logprobs": True}, "logprobs"),
        ({"messages": [{"role": "user", "content": "a" * 300}]}, "maximum context length is 256 tokens"),
    ],
)
def test_what_is_refused(http: httpx.Client, fields: dict[str, Any], said: str) -> None:
    body: dict[str, Any] = {"model": MODEL, "max_tokens": 4, "messages": HI, **fields}
    answer = http.post("/v1/messages", json={key: value for key, value in body.items() if value is not ...})
    assert answer.status_code == 400, answer.text
    assert answer.json().keys() == {"type", "error"}
    assert answer.json()["type"] == "error"
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert said in error["message"]


def test_harmless_fields_are_taken(http: httpx.Client) -> None:
    body = {"metadata": {"user_id": "u"}, "service_tier": "auto", "thinking": {"type": "disabled"}, "tools": []}
    answer = http.post("/v1/messages", json={"model": MODEL, "max_tokens": 4, "messages": HI, **body})
    assert answer.status_code == 200, answer.text


def test_errors_are_the_clients_own(guarded: Serving, claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        claude.messages.create(model="claude", max_tokens=4, messages=HI)
    assert missing.value.body == {
        "type": "error",
        "error": {
            "type": "not_found_error",
            "message": f"The model `claude` does not exist; this server has `{MODEL}`.",
        },
    }
    stranger = anthropic.Anthropic(base_url=guarded.url, api_key="wrong", max_retries=0)
    with stranger, pytest.raises(anthropic.AuthenticationError):
        stranger.messages.create(model=MODEL, max_tokens=4, messages=HI)


def test_overload_and_a_dead_engine() -> None:
    with Serving() as running, client_of(running) as client, running.http() as http:
        running.service.admission.draining = True
        body = {"model": MODEL, "max_tokens": 4, "messages": HI}
        answer = http.post("/v1/messages", json=body)
        assert (answer.status_code, answer.json()["error"]["type"]) == (529, "overloaded_error")
        assert answer.headers["retry-after"]
        running.service.admission.draining = False
        running.call(running.engine.die)
        with pytest.raises(anthropic.InternalServerError) as dead:
            client.messages.create(**body)
        assert dead.value.status_code == 503


def test_a_stream_that_fails_says_so() -> None:
    with Serving(FakeEngine(fail_at=3)) as running, client_of(running) as client:
        with pytest.raises(anthropic.APIStatusError, match="not finite"):
            list(client.messages.create(model=MODEL, max_tokens=50, messages=HI, stream=True))
        wait_for(lambda: running.service.admission.open == 0)


def test_leaving_ends_the_request() -> None:
    with Serving(FakeEngine(lambda prompt, index: [65], step_s=0.01, max_model_len=100_000)) as running:

        async def leave() -> None:
            async with anthropic.AsyncAnthropic(base_url=running.url, api_key="x", max_retries=0) as client:
                stream = await client.messages.create(model=MODEL, max_tokens=50_000, messages=HI, stream=True)
                async for event in stream:
                    if event.type == "content_block_delta":
                        break
                await stream.close()

        asyncio.run(leave())
        wait_for(lambda: not running.engine.open)
        wait_for(lambda: running.service.admission.open == 0)
