"""Every bad input is answered with its status, field and code, shortly, and hurts nobody else."""

import httpx
import pytest

from tests.server.cases import ALL, CHAT, MODEL, Case
from tests.server.fake_engine import ANSWER
from tests.server.serving import Serving
from tests.waiting import wait_for

pytestmark = pytest.mark.plain

MAX_ANSWER_BYTES = 8 << 10
ERROR_FIELDS = {"message", "type", "param", "code"}
TYPES = {404: "not_found_error", 500: "server_error"}


@pytest.mark.parametrize("case", ALL, ids=lambda case: f"{case.path}: {case.name[:40]}")
def test_case(http: httpx.Client, case: Case) -> None:
    check(http, case)


def check(http: httpx.Client, case: Case) -> None:
    """Send a case and judge the answer."""
    headers = {"content-type": "application/json", **case.headers}
    if not headers["content-type"]:
        del headers["content-type"]
    answer = http.post(case.path, content=case.raw, headers=headers)
    assert answer.status_code == case.status, answer.text[:500]
    assert answer.headers["x-request-id"]
    if case.status == 200:
        return
    assert len(answer.content) <= MAX_ANSWER_BYTES
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == ERROR_FIELDS
    assert error["type"] == TYPES.get(case.status, "invalid_request_error")
    assert error["code"]
    assert error["message"]
    assert not any(word in error["message"] for word in ("quire.", ".py", "Traceback", "msgspec", "Struct", "0x"))
    if case.param != "":
        assert error["param"] == case.param, error
    if case.code:
        assert error["code"] == case.code


def test_the_server_still_works_and_nothing_is_left(serving: Serving, http: httpx.Client) -> None:
    for case in ALL[:40]:
        http.post(case.path, content=case.raw, headers={"content-type": "application/json"})
    answer = http.post(CHAT, json={"model": MODEL, "messages": [{"role": "user", "content": "hi"}]})
    assert answer.json()["choices"][0]["message"]["content"] == ANSWER
    service = serving.service
    wait_for(lambda: not (service.admission.open or serving.engine.open or service.open_watches))


@pytest.mark.parametrize(
    ("path", "name", "says"),
    [
        ("/v1/chat/completions", "guided_regex", "guided_regex is not read here; send structured_outputs."),
        ("/v1/chat/completions", "function_call", "function_call is not read here; send tool_choice."),
        ("/v1/completions", "functions", "functions is not supported yet; leave it out."),
        ("/v1/responses", "guided_json", "guided_json is not read here; send text.format."),
        ("/v1/responses", "regex", "regex is not supported yet; leave it out."),
        ("/v1/messages", "json_schema", "json_schema is not read here; send output_config.format."),
        ("/v1/messages", "grammar", "grammar is not supported yet; leave it out."),
    ],
)
def test_a_foreign_field_names_one_that_the_endpoint_has(http: httpx.Client, path: str, name: str, says: str) -> None:
    answer = http.post(path, json={name: "a"})
    assert answer.status_code == 400 and answer.json()["error"]["message"] == says


def test_an_unknown_field_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    with Serving() as running, running.http() as http:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
        for number in range(3):
            http.post(CHAT, json={**body, "a_field_of_this_test": number})
        for number in range(300):
            http.post(CHAT, json={**body, f"field_of_this_test_{number}": 1, "n": 0})
    warned = [record.getMessage() for record in caplog.records if "of_this_test" in record.getMessage()]
    assert sum("a_field_of_this_test" in message for message in warned) == 1
    assert len(warned) == 100, "clients cannot flood the log with names"
