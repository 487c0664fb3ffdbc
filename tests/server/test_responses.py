"""Responses, judged by the official client."""

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from quire.server.store import OVERHEAD_BYTES, Kept, Store
from tests.server.fake_engine import ANSWER, EOS, FakeEngine
from tests.server.serving import Serving
from tests.waiting import HANG_S, wait_for

pytestmark = pytest.mark.plain

MODEL = "org/fake-model"
RENDERED = "user: hi\nassistant:"
TOKENS = len(ANSWER.encode()) + 1


class Echo(FakeEngine):
    """Answers with the prompt itself, so that tests see what the model was given."""

    def __init__(self, **options: Any) -> None:
        super().__init__(lambda prompt, index: [*prompt, EOS], **options)


@pytest.fixture(scope="module")
def echo() -> Iterator[openai.OpenAI]:
    with Serving(Echo()) as running, running.client() as made:
        yield made


def slow() -> FakeEngine:
    return FakeEngine(lambda prompt, index: [65], step_s=0.01, max_model_len=100_000)


def test_a_plain_answer(client: openai.OpenAI) -> None:
    answer = client.responses.create(model=MODEL, input="hi", metadata={"a": "b"}, temperature=0.5, top_p=0.9)
    assert answer.output_text == ANSWER
    assert (answer.object, answer.status, answer.error, answer.incomplete_details) == (
        "response",
        "completed",
        None,
        None,
    )
    assert answer.id.startswith("resp_")
    assert answer.metadata == {"a": "b"}
    assert (answer.temperature, answer.top_p, answer.model) == (0.5, 0.9, MODEL)
    (item,) = answer.output
    assert item.type == "message"
    assert (item.role, item.status, item.content[0].type) == ("assistant", "completed", "output_text")
    usage = answer.usage
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (len(RENDERED), TOKENS)
    assert usage.total_tokens == len(RENDERED) + TOKENS
    assert usage.input_tokens_details.cached_tokens == 2


def test_a_stream_says_the_same_as_a_plain_answer(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model=MODEL, input="hi", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        *("response.created", "response.in_progress"),
        *("response.output_item.added", "response.content_part.added"),
    ]
    assert kinds[-4:] == [
        *("response.output_text.done", "response.content_part.done"),
        *("response.output_item.done", "response.completed"),
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == ANSWER
    first, last = events[0], events[-1]
    assert first.type == "response.created"
    assert (first.response.status, first.response.output, first.response.usage) == ("in_progress", [], None)
    assert last.type == "response.completed"
    assert last.response.id == first.response.id
    plain = client.responses.create(model=MODEL, input="hi")
    left_out = {"id": True, "created_at": True, "completed_at": True, "output": {0: {"id"}}}
    assert last.response.model_dump(exclude=left_out) == plain.model_dump(exclude=left_out)  # type: ignore[arg-type]


def test_the_stream_helper_of_the_client(client: openai.OpenAI) -> None:
    with client.responses.stream(model=MODEL, input="hi") as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert snapshots[-1] == final.output_text == ANSWER


def test_the_bytes_of_a_stream(http: httpx.Client) -> None:
    answer = http.post("/v1/responses", json={"model": MODEL, "input": "hi", "stream": True})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    for event in answer.text.strip().split("\n\n"):
        name, data = event.split("\n")
        assert data.startswith(f'data: {{"type":"{name.removeprefix("event: ")}","sequence_number":')
    assert "[DONE]" not in answer.text


def test_an_answer_that_is_cut(client: openai.OpenAI) -> None:
    answer = client.responses.create(model=MODEL, input="hi", max_output_tokens=3)
    assert (answer.status, answer.output_text) == ("incomplete", "Hel")
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    events = list(client.responses.create(model=MODEL, input="hi", max_output_tokens=3, stream=True))
    assert events[-1].type == "response.incomplete"


@pytest.mark.parametrize(
    ("asked", "rendered"),
    [
        ({"input": "hi", "instructions": "be kind"}, "system: be kind\nuser: hi"),
        ({"input": [{"role": "user", "content": "a"}]}, "user: a"),
        (
            {"input": [{"role": "system", "content": "x"}, {"role": "user", "content": "a"}], "instructions": "y"},
            "system: y+x\nuser: a",
        ),
        (
            {
                "input": [
                    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
                    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b"}]},
                    {"role": "developer", "content": "c"},
                ]
            },
            "user: a\nassistant: b\ndeveloper: c",
        ),
    ],
)
def test_input_becomes_a_chat(echo: openai.OpenAI, asked: dict[str, Any], rendered: str) -> None:
    assert echo.responses.create(model=MODEL, **asked).output_text == f"{rendered}\nassistant:"


def test_a_response_is_fetched_and_gone_on_from(echo: openai.OpenAI) -> None:
    first = echo.responses.create(model=MODEL, input="a", instructions="not for long")
    assert echo.responses.retrieve(first.id).model_dump() == first.model_dump()
    for stream in (False, True):
        second = echo.responses.create(model=MODEL, input="b", previous_response_id=first.id, stream=stream)
        if stream:
            *_, last = second
            second = last.response
        assert second.previous_response_id == first.id
        assert second.output_text == f"user: a\nassistant: {first.output_text}\nuser: b\nassistant:"
        assert echo.responses.retrieve(second.id).output_text == second.output_text


def test_what_is_not_stored_is_not_found() -> None:
    with Serving() as running, running.client() as client, running.client(api_key="another") as stranger:
        unstored = client.responses.create(model=MODEL, input="a", store=False)
        stored = client.responses.create(model=MODEL, input="a")
        for one, id in ((client, unstored.id), (client, "resp_x"), (stranger, stored.id)):
            with pytest.raises(openai.NotFoundError) as missing:
                one.responses.retrieve(id)
            assert missing.value.code == "response_not_found"
            with pytest.raises(openai.NotFoundError):
                one.responses.cancel(id)
            with pytest.raises(openai.BadRequestError) as refused:
                one.responses.create(model=MODEL, input="b", previous_response_id=id)
            assert (refused.value.param, refused.value.code) == ("previous_response_id", "previous_response_not_found")
        assert client.responses.retrieve(stored.id).id == stored.id


def test_the_store_keeps_what_was_used_last() -> None:
    store = Store(3 * (OVERHEAD_BYTES + 10))
    kept = Kept(b"12345", b"67890")
    for name in "abc":
        store.put((b"", name), kept)
    assert store.get((b"", "a")) == kept
    store.put((b"", "d"), kept)
    assert [name for name in "abcd" if store.get((b"", name))] == ["a", "c", "d"]
    store.put((b"", "d"), kept)
    assert store.used_bytes == 3 * kept.size_bytes
    store.put((b"", "large"), Kept(bytes(10_000), b""))
    assert store.get((b"", "large")) is None
    assert store.get((b"", "a")), "what cannot be kept drives nothing out"


def test_the_store_is_bounded() -> None:
    with Serving(response_store_bytes=8000) as running, running.client() as client:
        ids = [client.responses.create(model=MODEL, input="a").id for _ in range(8)]
        assert 0 < running.service.responses.used_bytes <= 8000
        assert client.responses.retrieve(ids[-1]).id == ids[-1]
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(ids[0])


def test_in_the_background() -> None:
    with Serving(FakeEngine(step_s=0.005)) as running, running.client() as client:
        answer = client.responses.create(model=MODEL, input="hi", background=True)
        assert (answer.status, answer.output, answer.background) == ("in_progress", [], True)
        wait_for(lambda: client.responses.retrieve(answer.id).status != "in_progress")
        answer = client.responses.retrieve(answer.id)
        assert (answer.status, answer.output_text) == ("completed", ANSWER)
        assert client.responses.cancel(answer.id).status == "completed", "too late, and no error"
        wait_for(lambda: running.service.responses.running == {})


def test_cancelling_what_runs_in_the_background() -> None:
    with Serving(slow()) as running, running.client() as client:
        answer = client.responses.create(model=MODEL, input="hi", background=True)
        wait_for(lambda: running.engine.open)
        assert client.responses.cancel(answer.id).status == "cancelled"
        wait_for(lambda: not running.engine.open)
        assert client.responses.retrieve(answer.id).status == "cancelled"
        assert client.responses.cancel(answer.id).status == "cancelled"
        wait_for(lambda: running.service.admission.open == 0 and not running.service.open_watches)
        waited = client.responses.create(model=MODEL, input="hi", max_output_tokens=1)
        with pytest.raises(openai.BadRequestError, match="background"):
            client.responses.cancel(waited.id)


def test_failures_in_the_background_and_in_a_stream() -> None:
    with Serving(FakeEngine(fail_at=3)) as running, running.client() as client:
        answer = client.responses.create(model=MODEL, input="hi", background=True)
        wait_for(lambda: not running.service.responses.running)
        failed = client.responses.retrieve(answer.id)
        assert failed.status == "failed"
        assert failed.error is not None
        assert "not finite" in failed.error.message
        with pytest.raises(openai.BadRequestError):
            client.responses.create(model=MODEL, input="b", previous_response_id=answer.id)
        *_, told, last = client.responses.create(model=MODEL, input="hi", stream=True)
        assert told.type == "error"
        assert (told.code, last.type) == ("engine_error", "response.failed")
        assert (last.response.status, last.response.output_text) == ("failed", "Hel")
        with pytest.raises(openai.InternalServerError):
            client.responses.create(model=MODEL, input="hi")


def test_work_in_the_background_ends_with_the_server() -> None:
    with Serving(slow(), shutdown_timeout_s=0.1) as running, running.client() as client:
        answer = client.responses.create(model=MODEL, input="hi", background=True)
        wait_for(lambda: running.engine.open)
        running.call(running.server.stop)
        running.thread.join(HANG_S)
        assert not running.thread.is_alive()
        assert running.engine.open == set()
        kept = running.service.responses.get((next(iter(running.service.responses._kept))[0], answer.id))
        assert kept is not None
        assert b'"status":"failed"' in kept.body


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ...}, "input"),
        ({"input": 3}, "input"),
        ({"input": []}, "input"),
        ({"input": ["hi"]}, "input[0]"),
        ({"input": [{"role": "tool", "content": "a"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0].output"),
        ({"input": [{"type": "function_call", "call_id": "c", "arguments": "{}"}]}, "input[0].name"),
        ({"input": [{"type": "item_reference", "id": "r"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": "a" * 300}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"messages": [{"role": "user", "content": "a"}]}, "messages"),
        ({"temperature": 3}, "temperature"),
        ({"n": 2}, "n"),
        ({"stop": ["a"]}, "stop"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
        ({"tools": [{"type": "function", "name": "f", "parameters": 5}]}, "tools[0].parameters"),
        ({"tools": "f"}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": []}}}, "text.format"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"truncation": "auto"}, "truncation"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"background": True, "stream": True}, "stream"),
        ({"background": True, "store": False}, "store"),
        ({"background": True, "top_p": 0}, "top_p"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
        ({"metadata": {"a": "b" * 513}}, "metadata"),
        ({"metadata": {"a": 1}}, "metadata[...]"),
        ({"previous_response_id": "resp_x"}, "previous_response_id"),
    ],
)
def test_what_is_refused(http: httpx.Client, fields: dict[str, Any], param: str) -> None:
    body = {"model": MODEL, "input": "hi", **fields}
    answer = http.post("/v1/responses", json={key: value for key, value in body.items() if value is not ...})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert param.partition("[")[0] in error["message"] or "context length" in error["message"]


def test_harmless_fields_are_taken(http: httpx.Client) -> None:
    body = {
        "text": {"format": {"type": "text"}},
        "reasoning": {"effort": None},
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "include": ["reasoning.encrypted_content"],
        "truncation": "disabled",
        "service_tier": "auto",
        "user": "u",
        "stream_options": {"include_obfuscation": False},
    }
    answer = http.post("/v1/responses", json={"model": MODEL, "input": "hi", **body})
    assert answer.status_code == 200, answer.text
    id = answer.json()["id"]
    assert http.get(f"/v1/responses/{id}?stream=true").json()["error"]["param"] == "stream"
