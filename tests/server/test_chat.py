"""Chat completions, judged by the official client."""

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest

from quire.messages.params import SamplingParams
from tests.server.fake_engine import ANSWER, EOS, FakeEngine
from tests.server.serving import Serving

pytestmark = pytest.mark.plain

MODEL = "org/fake-model"
HI: Any = [{"role": "user", "content": "hi"}]
RENDERED = "user: hi\nassistant:"


def events(text: str) -> list[Any]:
    """The JSON of every event, and "[DONE]"."""
    assert text.endswith("\n\n")
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_a_plain_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HI)
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", ANSWER, "stop")
    assert "refusal" in choice.message.model_fields_set and choice.message.refusal is None
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == MODEL
    assert answer.system_fingerprint
    usage = answer.usage
    assert usage is not None
    assert usage.prompt_tokens == len(RENDERED)
    assert usage.completion_tokens == len(ANSWER.encode()) + 1
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 2
    assert answer._request_id


def test_a_stream_says_the_same_as_a_plain_answer(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(model=MODEL, messages=HI, stream=True, stream_options={"include_usage": True})
    )
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
    assert chunks[0].object == "chat.completion.chunk"
    first, *middle, finish, last = chunks
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    assert "".join(chunk.choices[0].delta.content or "" for chunk in middle) == ANSWER
    assert all(chunk.choices[0].finish_reason is None for chunk in [first, *middle])
    assert all(chunk.usage is None for chunk in [first, *middle, finish])
    assert finish.choices[0].finish_reason == "stop"
    assert finish.choices[0].delta.content is None
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (len(RENDERED), len(ANSWER.encode()) + 1)


def test_the_bytes_of_a_stream(http: httpx.Client) -> None:
    body = {"model": MODEL, "messages": HI, "stream": True}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    assert "content-length" not in answer.headers
    *chunks, done = events(answer.content.decode("utf-8"))
    assert done == "[DONE]"
    assert "�" not in answer.text
    assert all("usage" not in chunk for chunk in chunks), "usage is only there if it was asked for"
    assert chunks[-1]["choices"][0]["delta"] == {}


def test_a_stream_with_usage_has_null_usage_before_the_end(http: httpx.Client) -> None:
    body = {"model": MODEL, "messages": HI, "stream": True, "stream_options": {"include_usage": True}}
    *chunks, last, _ = events(http.post("/v1/chat/completions", json=body).text)
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["usage"]["total_tokens"] > 0


def test_continuous_usage_counts_up(http: httpx.Client) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"model": MODEL, "messages": HI, "stream": True, "stream_options": options}
    *chunks, _ = events(http.post("/v1/chat/completions", json=body).text)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == len(ANSWER.encode()) + 1


def test_several_choices(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HI, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.message.content for choice in answer.choices] == [ANSWER] * 3
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3 * (len(ANSWER.encode()) + 1)
    assert answer.usage.prompt_tokens == len(RENDERED), "the prompt counts once"


def test_several_choices_in_a_stream(client: openai.OpenAI) -> None:
    texts, finished, opened = [""] * 3, set(), []
    for chunk in client.chat.completions.create(model=MODEL, messages=HI, n=3, stream=True):
        (choice,) = chunk.choices
        if choice.delta.role:
            opened.append(choice.index)
        texts[choice.index] += choice.delta.content or ""
        if choice.finish_reason:
            finished.add(choice.index)
    assert opened == [0, 1, 2]
    assert texts == [ANSWER] * 3
    assert finished == {0, 1, 2}


def test_length_and_max_completion_tokens(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HI, max_tokens=9, max_completion_tokens=5)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Hello", "length")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_cut_inside_characters_and_across_tokens(client: openai.OpenAI, stream: bool) -> None:
    answer: Any = client.chat.completions.create(model=MODEL, messages=HI, stop=["nothing", "ld 😀"], stream=stream)
    if stream:
        choices = [chunk.choices[0] for chunk in answer]
        text, reason = "".join(c.delta.content or "" for c in choices), choices[-1].finish_reason
        stop_reason = choices[-1].stop_reason
    else:
        choice = answer.choices[0]
        text, reason, stop_reason = choice.message.content, choice.finish_reason, choice.stop_reason
    assert (text, reason, stop_reason) == ("Hello wör", "stop", "ld 😀")


def test_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HI, logprobs=True, top_logprobs=3)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    spoken = b"".join(bytes(entry.bytes or []) for entry in logprobs.content)
    assert spoken.decode().removesuffix("<eos>") == ANSWER
    for entry in logprobs.content:
        assert entry.logprob == -1.0
        assert len(entry.top_logprobs) == 3
        assert [t.logprob for t in entry.top_logprobs] == sorted((t.logprob for t in entry.top_logprobs), reverse=True)
    assert any(e.logprob == -1.0 and e.token == logprobs.content[0].token for e in logprobs.content[0].top_logprobs)


def test_logprobs_without_top(client: openai.OpenAI) -> None:
    logprobs = client.chat.completions.create(model=MODEL, messages=HI, logprobs=True).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert all(entry.top_logprobs == [] for entry in logprobs.content)


def test_streamed_logprobs_are_those_of_the_plain_answer(client: openai.OpenAI) -> None:
    plain = client.chat.completions.create(model=MODEL, messages=HI, logprobs=True, top_logprobs=2)
    streamed = []
    for chunk in client.chat.completions.create(model=MODEL, messages=HI, logprobs=True, top_logprobs=2, stream=True):
        if chunk.choices[0].logprobs is not None:
            streamed += chunk.choices[0].logprobs.content or []
    assert plain.choices[0].logprobs is not None
    assert [e.model_dump() for e in streamed] == [e.model_dump() for e in plain.choices[0].logprobs.content or []]


def test_minus_infinity_is_a_number_in_json(http: httpx.Client) -> None:
    body = {"model": MODEL, "messages": HI, "logprobs": True, "top_logprobs": 5, "max_tokens": 1}
    answer = http.post("/v1/chat/completions", json=body).json()
    top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    assert min(entry["logprob"] for entry in top) >= -9999.0
    body["top_logprobs"] = 20
    top = http.post("/v1/chat/completions", json=body).json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    assert len(top) == 20


def test_prompt_logprobs_and_token_ids(client: openai.OpenAI) -> None:
    extra = {"prompt_logprobs": 0, "return_token_ids": True}
    answer: Any = client.chat.completions.create(model=MODEL, messages=HI, extra_body=extra, max_tokens=3)
    assert answer.prompt_logprobs[0] is None
    assert len(answer.prompt_logprobs) == len(answer.prompt_token_ids) == len(RENDERED)
    assert list(answer.prompt_logprobs[1]) == [str(answer.prompt_token_ids[1])]
    assert len(answer.choices[0].token_ids) == 3


def test_sampling_fields_reach_the_engine() -> None:
    engine = FakeEngine()
    seen: list[SamplingParams] = []
    generate = engine.generate

    def spy(prompt: Any, params: SamplingParams, *rest: Any, **named: Any) -> Any:
        seen.append(params)
        return generate(prompt, params, *rest, **named)

    engine.generate = spy  # type: ignore[method-assign]
    engine.defaults = SamplingParams(temperature=0.6, top_k=20, top_p=0.9)
    fields = {
        "top_p": 0.5,
        "top_k": None,
        "min_p": 0.1,
        "presence_penalty": 1.0,
        "frequency_penalty": -1,
        "repetition_penalty": 1.1,
        "seed": 5,
        "min_tokens": 2,
        "stop_token_ids": [1],
        "bad_words": ["bad"],
        "allowed_token_ids": [1, 2],
        "logit_bias": {"5": -100, "6": 3.5},
        "ignore_eos": True,
        "skip_special_tokens": False,
        "include_stop_str_in_output": True,
        "truncate_prompt_tokens": 4,
        "max_tokens": 3,
    }
    with Serving(engine) as running, running.http() as http:
        body = {"model": MODEL, "messages": HI, **fields, "priority": -2, "cache_salt": "tenant"}
        answer = http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["prompt_tokens"] == 4
        http.post("/v1/chat/completions", json={"model": MODEL, "messages": HI})
    params, plain = seen
    assert params.temperature == 0.6, "the checkpoint's default holds where nothing is asked"
    assert params.top_k == 20, "null is the default"
    assert params.logit_bias == {5: -100.0, 6: 3.5}
    for name in fields.keys() - {"top_k", "logit_bias"}:
        assert getattr(params, name) == fields[name], name
    assert (engine.priorities[0], engine.salts[0]) == (-2, "tenant")
    assert plain.max_tokens is None, "a chat goes on to the end of the context"


def test_the_models_own_max_tokens_is_a_default() -> None:
    engine = FakeEngine()
    engine.defaults = SamplingParams(max_tokens=4)
    with Serving(engine) as running, running.client() as client:
        assert client.chat.completions.create(model=MODEL, messages=HI).choices[0].message.content == "Hell"


def test_messages_reach_the_template_as_they_are(serving: Serving, client: openai.OpenAI) -> None:
    parts: Any = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "bob"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "c\x00d"},
    ]
    answer: Any = client.chat.completions.create(
        model=MODEL, messages=parts, max_tokens=1, extra_body={"return_token_ids": True}
    )
    text = serving.engine.tokenizer.decode(answer.prompt_token_ids)
    assert text == "developer: be kind\nuser: a+b\nassistant: \nuser: c\x00d\nassistant:"


def test_template_arguments(serving: Serving, client: openai.OpenAI) -> None:
    extra: dict[str, Any] = {"continue_final_message": True, "chat_template_kwargs": {"thinking": False}}
    client.chat.completions.create(model=MODEL, messages=HI, extra_body=extra, max_tokens=1)
    assert serving.template is not None
    assert serving.template.kwargs == {"add_generation_prompt": False, "continued": True, "thinking": False}


def test_a_clients_request_id_labels_the_answer(client: openai.OpenAI) -> None:
    extra = {"request_id": "mine-1"}
    twice = [client.chat.completions.create(model=MODEL, messages=HI, extra_body=extra).id for _ in range(2)]
    assert twice == ["chatcmpl-mine-1"] * 2, "it is a label: the engine has ids of its own"


def test_harmless_fields_are_accepted(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=HI,
        user="u",
        metadata={"a": "b"},
        store=True,
        service_tier="auto",
        safety_identifier="s",
        tool_choice="none",
        response_format={"type": "text"},
        extra_body={"an_unknown_field": 1, "best_of": 1},
    )
    assert answer.choices[0].message.content == ANSWER


async def ask_async(serving: Serving) -> str:
    async with openai.AsyncOpenAI(base_url=f"{serving.url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.chat.completions.create(model=MODEL, messages=HI, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


def test_the_asynchronous_client(serving: Serving) -> None:
    assert asyncio.run(ask_async(serving)) == ANSWER


def test_long_messages_are_rendered_too() -> None:
    long: Any = [{"role": "user", "content": "x" * 150_000}]
    with Serving(FakeEngine(max_model_len=200_000)) as running, running.client() as client:
        answer = client.chat.completions.create(model=MODEL, messages=long, max_tokens=1)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens > 150_000


def test_a_model_without_a_template_says_so() -> None:
    with Serving(chat=False) as running, running.client() as client:
        with pytest.raises(openai.BadRequestError, match="no chat template") as error:
            client.chat.completions.create(model=MODEL, messages=HI)
        assert error.value.code == "no_chat_template"


def test_errors_reach_the_official_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=MODEL, messages=HI, temperature=3)
    assert (bad.value.param, bad.value.code, bad.value.type) == (
        "temperature",
        "invalid_value",
        "invalid_request_error",
    )
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="other", messages=HI)
    assert (missing.value.param, missing.value.code) == ("model", "model_not_found")
    assert "`other` does not exist" in missing.value.message
    for count in (300, 6000):
        with pytest.raises(openai.BadRequestError, match="maximum context length is 256 tokens") as long:
            client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x" * count}])
        assert (long.value.code, long.value.param) == ("context_length_exceeded", "messages")


def test_an_eos_that_is_ignored_is_spoken() -> None:
    engine = FakeEngine(lambda prompt, index: [72, EOS])
    with Serving(engine) as running, running.client() as client:
        extra = {"ignore_eos": True, "skip_special_tokens": False}
        answer = client.chat.completions.create(model=MODEL, messages=HI, max_tokens=4, extra_body=extra)
        assert answer.choices[0].finish_reason == "length"
        assert (answer.choices[0].message.content or "").count("<eos>") == 2
