"""Embeddings, scores and the like over HTTP, with the official client and by hand."""

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.server.fake_pooler import FRAMED, LABELS, LATE, FakePooler
from tests.server.serving import Serving
from tests.waiting import wait_for

pytestmark = pytest.mark.plain

MODEL = "org/fake-model"


@pytest.fixture(scope="module")
def vectors() -> Iterator[Serving]:
    with Serving(FakePooler(), chat=False) as running:
        yield running


@pytest.fixture(scope="module")
def labels() -> Iterator[Serving]:
    with Serving(FakePooler(LABELS), chat=False) as running:
        yield running


@pytest.fixture
def http(vectors: Serving) -> Iterator[httpx.Client]:
    with vectors.http() as http:
        yield http


def post(http: httpx.Client, path: str, **fields: Any) -> httpx.Response:
    return http.post(path, json={"model": MODEL, **fields})


def test_the_official_client_gets_its_vectors(vectors: Serving) -> None:
    with vectors.client() as client:
        for form in (openai.NOT_GIVEN, "float"):
            found = client.embeddings.create(model=MODEL, input=["abc", "hello"], encoding_format=form)  # type: ignore[arg-type]
            assert [entry.embedding for entry in found.data] == [[3.0, 1.0, 2.0, 3.0], [5.0, 1.0, 2.0, 3.0]]
            assert [entry.index for entry in found.data] == [0, 1]
            assert (found.usage.prompt_tokens, found.usage.total_tokens, found.model) == (8, 8, MODEL)
        short = client.embeddings.create(model=MODEL, input="abc", dimensions=2)
        assert short.data[0].embedding == [3.0, 1.0]
        ids = client.embeddings.create(model=MODEL, input=[[1, 2], [3]])
        assert [entry.embedding[0] for entry in ids.data] == [2.0, 1.0]
        assert client.embeddings.create(model=MODEL, input=[1, 2, 3]).data[0].embedding[0] == 3.0


def test_2048_inputs_at_once(http: httpx.Client, vectors: Serving) -> None:
    answer = post(http, "/v1/embeddings", input=["a"] * 2048, encoding_format="base64").json()
    assert len(answer["data"]) == 2048 and len(base64.b64decode(answer["data"][-1]["embedding"])) == 16
    assert post(http, "/v1/embeddings", input=["a"] * 2049).status_code == 400
    wait_for(lambda: vectors.service.admission.open == 0)


def test_a_prompt_by_name_goes_before_each_text(http: httpx.Client) -> None:
    named = post(http, "/v1/embeddings", input="abc", prompt_name="query").json()
    assert named["usage"]["prompt_tokens"] == 8
    assert post(http, "/v1/embeddings", input="abc", prompt_name="x").json()["error"]["param"] == "prompt_name"


def test_text_is_cut_where_that_is_asked_for(http: httpx.Client) -> None:
    assert post(http, "/v1/embeddings", input="a" * 300).json()["error"]["code"] == "context_length_exceeded"
    cut = post(http, "/v1/embeddings", input="a" * 300, truncate_prompt_tokens=-1).json()
    assert cut["usage"]["prompt_tokens"] == 255
    assert post(http, "/v1/embeddings", input="abc", truncate_prompt_tokens=2).json()["usage"]["prompt_tokens"] == 2


def test_any_task_of_the_model(http: httpx.Client) -> None:
    assert post(http, "/pooling", input="ab").json()["data"][0]["data"] == [2.0, 1.0, 2.0, 3.0]
    tokens = post(http, "/pooling", input="ab", task="token_embed").json()
    assert tokens["data"][0] == {"object": "pooling", "index": 0, "data": [[2.0, 1.0, 2.0, 3.0]] * 2}
    assert post(http, "/pooling", input="ab", task="classify").json()["error"]["code"] == "unsupported_task"


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_pairs_are_scored_by_their_vectors(http: httpx.Client, path: str) -> None:
    answer = post(http, path, text_1="abc", text_2=["abc", "a"]).json()
    assert [entry["score"] for entry in answer["data"]] == pytest.approx([1.0, 17 / (23 * 15) ** 0.5])
    assert [entry["object"] for entry in answer["data"]] == ["score", "score"]
    assert answer == {**post(http, path, queries="abc", documents=["abc", "a"]).json(), **_own(answer)}


def _own(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: answer[name] for name in ("id", "created")}


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_documents_come_best_first(http: httpx.Client, path: str) -> None:
    answer = post(http, path, query="abc", documents=["aaaaaaaaaaaaaaaa", {"text": "abd"}, "ab"], top_n=2).json()
    assert [(entry["index"], entry["document"]) for entry in answer["results"]] == [
        (1, {"text": "abd"}),
        (2, {"text": "ab"}),
    ]
    assert answer["results"][0]["relevance_score"] == pytest.approx(1.0)
    bare = post(http, path, query="abc", documents=["ab"], return_documents=False).json()
    assert set(bare["results"][0]) == {"index", "relevance_score"}


def test_a_cross_encoder_gets_both_texts_in_one(labels: Serving) -> None:
    with labels.http() as http:
        answer = post(http, "/rerank", query="abc", documents=["de", "f"]).json()
        assert [entry["relevance_score"] for entry in answer["results"]] == [5.0, 4.0]
        assert [request.pooling.second for request in labels.engine.asked[-2:]] == [3, 3]
        found = post(http, "/classify", input=["abc"]).json()["data"]
        assert found == [{"index": 0, "label": "good", "probs": [3.0], "num_classes": 1}]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        *(
            ("/v1/embeddings", body, param)
            for body, param in (
                ({"input": "a", "encoding_format": "foo"}, "encoding_format"),
                ({"input": "a", "dimensions": 0}, "dimensions"),
                ({"input": "a", "dimensions": 5}, "dimensions"),
                ({"input": "a", "dimensions": "4"}, "dimensions"),
                ({"input": None}, "input"),
                ({}, "input"),
                ({"input": []}, "input"),
                ({"input": ["a", 1]}, "input"),
                ({"input": [[300]]}, "input"),
                ({"input": [[]]}, "input"),
                ({"input": {"a": 1}}, "input"),
                ({"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
                ({"input": "a", "normalize": "yes"}, "normalize"),
                ({"input": "a", "cache_salt": ""}, "cache_salt"),
            )
        ),
        ("/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_2"),
        ("/score", {"text_1": "a"}, "text_2"),
        ("/score", {"text_1": "a", "text_2": []}, "text_2"),
        ("/rerank", {"query": "a", "documents": []}, "documents"),
        ("/rerank", {"query": "a", "documents": [5]}, "documents[0]"),
        ("/rerank", {"query": "a", "documents": ["b"], "top_n": 0}, "top_n"),
        ("/v1/completions", {"prompt": "a"}, "model"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}, "model"),
        ("/classify", {"input": "a"}, "model"),
    ],
)
def test_what_is_wrong_is_named(http: httpx.Client, path: str, body: dict[str, Any], param: str) -> None:
    answer = post(http, path, **body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param and error["type"] == "invalid_request_error"


def test_a_model_that_generates_serves_none_of_it(serving: Serving) -> None:
    with serving.http() as http:
        for path, body in (
            ("/v1/embeddings", {"input": "a"}),
            ("/classify", {"input": "a"}),
            ("/pooling", {"input": "a"}),
            ("/score", {"text_1": "a", "text_2": "b"}),
            ("/v2/rerank", {"query": "a", "documents": ["b"]}),
        ):
            assert post(http, path, **body).json()["error"]["code"] == "unsupported_task", path


def test_texts_are_compared_token_by_token_behind_their_sides() -> None:
    with Serving(FakePooler(LATE), chat=False) as running, running.http() as http:
        found = post(http, "/rerank", query="ab", documents=["c", "defg"]).json()
    # The fake gives each of n tokens (n, 1): of "qab" three, of "docc" 4 and of "docdefg" 7.
    scores = {entry["index"]: entry["relevance_score"] for entry in found["results"]}
    assert scores == {0: 3 * (3 * 4 + 1), 1: 3 * (3 * 7 + 1)}
    assert [entry["index"] for entry in found["results"]] == [1, 0]


def test_pairs_stand_in_the_frame_that_the_model_was_taught() -> None:
    engine = FakePooler(FRAMED)
    with Serving(engine, chat=False) as running, running.http() as http:
        assert post(http, "/score", text_1="x", text_2="y").status_code == 200
    tokenizer = engine.tokenizer
    want = [*tokenizer.encode("<s>", False), *tokenizer.encode_plain("AxBy", inside=True)]
    assert engine.asked[0].token_ids == [*want, *tokenizer.encode("</s>", False)]
