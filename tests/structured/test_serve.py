"""Structured outputs over HTTP: the official client, bad grammars, cancelled ones, and a canary beside all of it."""

import contextlib
import json
import socket
import threading
from typing import Literal

import httpx
import jsonschema
import openai
import psutil
import pytest
from pydantic import BaseModel, Field

from tests.acceptance.serving import serve
from tests.structured.test_checker import BOMB
from tests.waiting import HANG_S, wait_for

pytestmark = pytest.mark.multi

MESSAGES = [{"role": "user", "content": "Tell me of somebody."}]


class Person(BaseModel):
    """What is asked for."""

    name: Literal["Ada", "Bob"]
    age: int = Field(ge=0, le=120)


@pytest.fixture(scope="module")
def served():
    with serve("--num-gpu-blocks-override", "400", "--tool-call-parser", "hermes") as running:
        yield running


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def schema(content: object, **more: object) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": content, "strict": True, **more}}


def ask(served, **fields: object) -> httpx.Response:
    body = {"model": "default", "messages": MESSAGES, "max_tokens": 60, **fields}
    return httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=2 * HANG_S)


def canary(served) -> str:
    body = {"model": "default", "prompt": "Once upon a time", "max_tokens": 24, "temperature": 0, "ignore_eos": True}
    return httpx.post(f"{served.url}/v1/completions", json=body, timeout=HANG_S).json()["choices"][0]["text"]


def test_parse_gives_objects(client):
    answer = client.chat.completions.parse(model="default", messages=MESSAGES, response_format=Person, n=3)
    assert all(isinstance(choice.message.parsed, Person) for choice in answer.choices)
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}


def test_the_stream_helper_parses_too(client):
    with client.chat.completions.stream(model="default", messages=MESSAGES, response_format=Person) as stream:
        parsed = stream.get_final_completion().choices[0].message.parsed
    assert isinstance(parsed, Person)


def test_completions_take_vllms_field(client):
    wanted = {"structured_outputs": {"choice": ["red", "blue"]}}
    answer = client.completions.create(model="default", prompt=["a", "b"], n=2, extra_body=wanted)
    assert {choice.text for choice in answer.choices} <= {"red", "blue"} and len(answer.choices) == 4


def test_json_object_and_a_length_too_small(served):
    answer = ask(served, response_format={"type": "json_object"}, max_tokens=4).json()["choices"][0]
    assert answer["message"]["content"].startswith("{")
    full = ask(served, response_format=schema({"const": {"key": ["a", 1, None]}})).json()["choices"][0]
    assert json.loads(full["message"]["content"]) == {"key": ["a", 1, None]} and full["finish_reason"] == "stop"
    assert ask(served, response_format={"type": "text"}).status_code == 200


CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": CITY, "strict": True}}]


def test_required_calls_of_a_model_that_knows_no_tools(client):
    given = {"model": "default", "messages": MESSAGES, "tools": TOOLS, "max_tokens": 200}
    whole = client.chat.completions.create(**given, tool_choice="required", parallel_tool_calls=False, n=3)
    for choice in whole.choices:
        (call,) = choice.message.tool_calls
        assert call.function.name == "weather" and choice.finish_reason == "tool_calls"
        jsonschema.validate(json.loads(call.function.arguments), CITY)
    named = {"type": "function", "function": {"name": "weather"}}
    with client.chat.completions.stream(**given, tool_choice=named) as stream:
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    jsonschema.validate(json.loads(call.function.arguments), CITY)
    either = client.chat.completions.create(**given, response_format=schema({"enum": ["yes", "no"]})).choices[0].message
    assert either.tool_calls or json.loads(either.content) in ("yes", "no")


def test_bad_schemas_of_tools_are_named(served):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}, "strict": True}}]
    answer = ask(served, tools=tools, tool_choice="required")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools"), answer.text
    loose = [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}]
    assert ask(served, tools=loose, tool_choice="required").status_code == 200


def test_structural_tags_and_lenient_expressions(served):
    tag = {"structures": [{"begin": "<a>", "schema": {"const": 1}, "end": "</a>"}], "triggers": ["<a>"]}
    assert ask(served, response_format={"type": "structural_tag", **tag}).status_code == 200
    for regex in ("(a+)+b", "(a|aa)*c", "[a-z]{1,100000}"):
        answer = ask(served, structured_outputs={"regex": regex}, max_tokens=8)
        assert answer.status_code == 200, answer.text


def deep(levels: int) -> dict:
    made: dict = {"type": "integer"}
    for _ in range(levels - 1):
        made = {"items": made}
    return made


BAD = [
    ({"type": "json_schema"}, "invalid_schema"),
    ({"type": "xml"}, "invalid_type"),
    ("json", "invalid_type"),
    (schema("notjson"), "invalid_type"),
    (schema(5), "invalid_type"),
    (schema([]), "invalid_type"),
    (schema({"type": "strng"}), "invalid_schema"),
    (schema({"$ref": "#"}), "invalid_schema"),
    (schema({"$ref": "http://127.0.0.1:9/schema"}), "invalid_schema"),
    ({"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}, "invalid_value"),
]


@pytest.mark.parametrize("stream", [False, True])
def test_bad_formats_are_refused_by_name_and_hurt_nobody(served, stream):
    engine, before = served.engine().pid, canary(served)
    for wanted, code in BAD:
        answer = ask(served, response_format=wanted, stream=stream)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["code"]) == (400, "response_format", code), (wanted, error)
        assert len(answer.content) < 8192
    assert (served.engine().pid, canary(served)) == (engine, before)


@pytest.mark.parametrize(("levels", "status"), [(11, 200), (65, 400), (10_000, 400)])
def test_nesting_has_a_limit(served, levels, status):
    text = '{"items":' * (levels - 1) + '{"type": "integer"}' + "}" * (levels - 1)
    body = f'{{"model":"default","prompt":"x","max_tokens":2,"structured_outputs":{{"json":{text}}}}}'
    answer = httpx.post(
        f"{served.url}/v1/completions", content=body, headers={"content-type": "application/json"}, timeout=HANG_S
    )
    assert answer.status_code == status, answer.text[:300]


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"regex": "("},
        {"regex": "a", "choice": ["b"]},
        {"choice": []},
        {"choice": [""]},
        {"grammar": "start: x"},
        {"structural_tag": "{}"},
        {"regex": r"(a)\1"},
        {"json": "[" * 9},
    ],
)
def test_bad_structured_outputs_are_refused_by_name(served, wanted):
    answer = ask(served, structured_outputs=wanted)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "structured_outputs")


def test_a_bomb_is_a_timeout_while_others_are_served_and_a_cancelled_one_leaves_nothing(served):
    expected = canary(served)
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(ask(served, structured_outputs={"grammar": BOMB})))
    with checker_held(served):
        thread.start()
        wait_for(lambda: served.metric("num_requests_waiting") == 1)
        give_up_behind_it(served)
        assert canary(served) == expected
        assert served.get("/ready").status_code == 200
    thread.join(HANG_S)
    error = answers[0].json()["error"]
    assert answers[0].status_code == 400 and error["code"] in ("grammar_timeout", "grammar_too_complex")
    assert ask(served, structured_outputs={"regex": "after"}).json()["choices"][0]["message"]["content"] == "after"
    wait_for(lambda: not (served.metric("num_requests_waiting") or served.metric("kv_cache_usage_perc")))


@contextlib.contextmanager
def checker_held(served):
    """The process that checks grammars stands still, as if it had much to do."""
    ask(served, structured_outputs={"regex": "first"})
    children = psutil.Process(served.process.pid).children(recursive=True)
    (checker,) = [child for child in children if "quire.structured.checker_process" in child.cmdline()]
    checker.suspend()
    try:
        yield
    finally:
        checker.resume()


def give_up_behind_it(served):
    """A request whose grammar waits behind another one, and whose client leaves."""
    body = json.dumps({"model": "default", "messages": MESSAGES, "structured_outputs": {"regex": "never"}})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    url = httpx.URL(served.url)
    with socket.create_connection((url.host, url.port), timeout=HANG_S) as wire:
        wire.sendall(f"{head}Content-Type: application/json\r\n\r\n{body}".encode())
        wait_for(lambda: served.metric("num_requests_waiting") == 2)
    wait_for(lambda: served.metric("num_requests_waiting") == 1)
