"""Models, tokens, metrics, readiness, logs."""

import logging
import threading
import time
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from quire.base.logging import FORMAT, JsonLines
from quire.config.fields import ServerConfig
from quire.messages.params import SamplingParams
from quire.server import service
from quire.server.app import create_app
from quire.version import __version__
from tests.server.fake_engine import FakeEngine
from tests.server.serving import Serving
from tests.waiting import wait_for

pytestmark = pytest.mark.plain

MODEL = "org/fake-model"


def series(http: httpx.Client) -> dict[str, list[Any]]:
    text = http.get("/metrics").text
    return {family.name: list(family.samples) for family in text_string_to_metric_families(text)}


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == (MODEL, "model", "quire")
    assert model.created == client.models.list().data[0].created
    assert client.models.retrieve(MODEL).id == MODEL


def test_one_model_by_name(http: httpx.Client) -> None:
    assert http.get("/v1/models/org%2Ffake-model").json()["max_model_len"] == 256
    missing = http.get("/v1/models/other")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


def test_a_served_model_name() -> None:
    with Serving(served_model_name="mine") as running, running.client() as client:
        assert client.models.list().data[0].id == "mine"
        assert client.completions.create(model="mine", prompt="a").model == "mine"
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model=MODEL, prompt="a")


def test_version(http: httpx.Client) -> None:
    assert http.get("/version").json() == {"version": __version__}


def test_tokenize_and_back(http: httpx.Client) -> None:
    answer = http.post("/tokenize", json={"model": MODEL, "prompt": "héllo", "return_token_strs": True}).json()
    assert (answer["count"], len(answer["tokens"]), answer["max_model_len"]) == (6, 6, 256)
    assert answer["token_strs"][0] == "h"
    assert http.post("/detokenize", json={"model": MODEL, "tokens": answer["tokens"]}).json() == {"prompt": "héllo"}
    assert http.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}
    assert http.post("/tokenize", json={"prompt": ""}).json()["tokens"] == []


def test_tokenize_a_chat(http: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}]}
    with_prompt = http.post("/tokenize", json=body).json()
    without = http.post("/tokenize", json={**body, "add_generation_prompt": False}).json()
    text = [http.post("/detokenize", json={"tokens": answer["tokens"]}).json() for answer in (with_prompt, without)]
    assert text == [{"prompt": "user: hi\nassistant:"}, {"prompt": "user: hi"}]
    assert with_prompt["token_strs"] is None


def test_long_texts_are_tokenized(http: httpx.Client) -> None:
    answer = http.post("/tokenize", json={"prompt": "a" * 300_000}).json()
    assert answer["count"] == 300_000
    assert len(http.post("/detokenize", json={"tokens": answer["tokens"]}).json()["prompt"]) == 300_000


def test_models_say_what_a_request_gets_that_says_nothing() -> None:
    engine = FakeEngine()
    engine.defaults = SamplingParams(temperature=0.6, top_k=20)
    with Serving(engine) as running, running.http() as http:
        (card,) = http.get("/v1/models").json()["data"]
    defaults = card["sampling_defaults"]
    assert (defaults["temperature"], defaults["top_k"], defaults["top_p"]) == (0.6, 20, 1.0)
    assert defaults["max_tokens"] is None, "an answer goes on to the end of the context"


def test_load_counts_what_is_open() -> None:
    with Serving(FakeEngine(pause_at=1)) as running, running.http() as http:
        assert http.get("/load").json()["server_load"] == 0
        body = {"model": MODEL, "prompt": "a", "n": 3, "max_tokens": 200, "stream": True}
        with http.stream("POST", "/v1/completions", json=body):
            load = http.get("/load").json()
    assert (load["server_load"], load["max_running"], load["max_waiting"]) == (3, 8, 1024)


def test_metrics_have_the_names_that_dashboards_know() -> None:
    with Serving() as running, running.http() as http, running.client() as client:
        messages: Any = [{"role": "user", "content": "hi"}]
        list(client.chat.completions.create(model=MODEL, messages=messages, stream=True))
        client.completions.create(model=MODEL, prompt=["a", "bc"], max_tokens=2)
        running.engine.stats.running, running.engine.stats.kv_usage = 3, 0.5
        found = series(http)
    names = (
        *("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prefix_cache_queries"),
        *("prefix_cache_hits", "num_preemptions", "prompt_tokens", "generation_tokens", "request_success"),
        *("time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds"),
        *("request_prompt_tokens", "request_generation_tokens", "cache_config_info", "http_requests"),
    )
    assert {f"quire:{name}" for name in names} <= found.keys()
    value = {name: next(s.value for s in samples) for name, samples in found.items()}
    assert value["quire:num_requests_running"] == 3
    assert value["quire:kv_cache_usage_perc"] == 0.5
    assert value["quire:prompt_tokens"] == len("user: hi\nassistant:") + 3
    reasons = {
        s.labels["finished_reason"]: s.value for s in found["quire:request_success"] if s.name.endswith("_total")
    }
    assert reasons == {"stop": 1, "length": 2, "abort": 0, "error": 0}
    assert found["quire:cache_config_info"][0].labels["block_size"] == "16"
    counts = {s.name: s.value for name in found for s in found[name] if s.name.endswith("_count")}
    assert counts["quire:time_to_first_token_seconds_count"] == 3
    assert counts["quire:e2e_request_latency_seconds_count"] == 2


def test_the_first_token_of_a_whole_answer_is_timed_when_it_comes() -> None:
    with Serving(FakeEngine(pause_at=1)) as running, running.http() as http:
        body = {"model": MODEL, "prompt": "a", "max_tokens": 12}
        asking = threading.Thread(target=lambda: http.post("/v1/completions", json=body))
        asking.start()
        wait_for(lambda: running.engine.stats.steps == 1)
        http.get("/live")  # the event loop has gone round since
        began = time.monotonic()
        time.sleep(0.1)
        paused_s = time.monotonic() - began
        running.call(running.engine.resume)
        asking.join()
        sums = {s.name: s.value for found in series(http).values() for s in found if s.name.endswith("_sum")}
    first, whole = sums["quire:time_to_first_token_seconds_sum"], sums["quire:e2e_request_latency_seconds_sum"]
    assert 0 < first <= whole - paused_s


def test_logs_hold_nothing_of_what_clients_say(caplog: pytest.LogCaptureFixture) -> None:
    said = "a-word-of-the-client"
    body = {"model": MODEL, "prompt": said, "max_tokens": 2}
    chat = {"model": MODEL, "messages": [{"role": "user", "content": said}], "max_tokens": 2}
    with caplog.at_level("DEBUG"), Serving(disable_access_log=False) as running, running.http() as http:
        for path, asked in (("/v1/completions", body), ("/v1/chat/completions", chat), ("/tokenize", {"prompt": said})):
            for more in ({}, {"stream": True}, {"temperature": said}, {"user": said, "stop": [said]}):
                http.post(path, json={**asked, **more})
        http.post("/v1/responses", json={"model": MODEL, "input": said, "max_output_tokens": 2})
        http.post("/v1/messages", json=chat)
        http.post("/v1/completions", content=f'{{"prompt": "{said}"')
    ours = [record for record in caplog.records if record.name.startswith(("quire", "uvicorn"))]
    assert len(ours) >= 15
    for format in (JsonLines(), logging.Formatter(FORMAT)):
        assert not [line for line in map(format.format, ours) if said in line]


def test_clients_cannot_make_series() -> None:
    with Serving() as running, running.http() as http:
        http.post("/v1/completions", json={"model": MODEL, "prompt": "a"})
        http.get("/v1/models/x")
        http.request("PUT", "/first")
        http.get("/metrics")
        before = sum(map(len, series(http).values()))
        for number in range(50):
            http.post(f"/nowhere/{number}", json={})
            http.post("/v1/completions", json={"model": MODEL, "prompt": "a", "user": f"u{number}"})
            http.get(f"/v1/models/m{number}")
            http.request("PROPFIND" if number % 2 else "PUT", f"/x{number}")
        assert sum(map(len, series(http).values())) <= before + 6


def test_readiness_is_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine()
    served = create_app(engine, ServerConfig(stall_timeout_s=20)).state.service
    now = 1000.0
    # Only here: event loops of other servers have the same clock.
    monkeypatch.setattr(service, "time", SimpleNamespace(monotonic=lambda: now))
    assert served.problem() is None
    now += 21
    assert served.problem() is None, "idle for long is no trouble"
    served.admission.open = 1
    now += 21
    assert served.problem() is None, "a slow reader is no trouble"
    engine.stats.running = 1
    now += 19
    assert served.problem() is None
    now += 2
    assert served.problem() == "the engine makes no progress"
    engine.patience_s = 300.0
    assert served.problem() is None, "its steps are known to take long"
    now += 280
    assert served.problem() == "the engine makes no progress"
    engine.stats.steps += 1
    assert served.problem() is None, "a step is progress"
