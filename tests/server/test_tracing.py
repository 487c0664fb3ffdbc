"""Spans of requests: the client's trace goes on, attributes say what was asked and taken, texts are never in them."""

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from quire.server.tracing import NoTracer, OtelTracer, tracer_for
from tests.server.fake_engine import FakeEngine
from tests.server.serving import Serving

pytestmark = pytest.mark.plain

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
BODY = {"model": "org/fake-model", "prompt": "my secret", "max_tokens": 4, "n": 2, "temperature": 0.5}


def traced(running: Serving) -> InMemorySpanExporter:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    running.service.tracer = OtelTracer(provider, "m")
    return spans


def test_a_request_is_a_span_below_its_clients() -> None:
    with Serving() as running, running.http() as http:
        spans = traced(running)
        assert http.post("/v1/completions", json=BODY, headers={"traceparent": PARENT}).status_code == 200
        (span,) = spans.get_finished_spans()
    assert span.parent is not None and f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
    assert f"{span.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    found = dict(span.attributes or {})
    assert found["gen_ai.usage.input_tokens"] == 9 and found["gen_ai.usage.output_tokens"] == 8
    assert found["gen_ai.response.finish_reasons"] == ("length", "length")
    assert found["gen_ai.request.temperature"] == 0.5 and found["gen_ai.request.max_tokens"] == 4
    assert [event.name for event in span.events] == ["gen_ai.first_token"]
    assert "secret" not in span.to_json()


def test_a_failure_is_in_the_span() -> None:
    with Serving(FakeEngine(fail_at=1)) as running, running.http() as http:
        spans = traced(running)
        assert http.post("/v1/completions", json=BODY, headers={"traceparent": "nonsense"}).status_code == 500
        (span,) = spans.get_finished_spans()
    assert span.parent is None and not span.status.is_ok
    assert dict(span.attributes or {})["error.type"] == "error"


def test_nothing_is_traced_unless_somebody_collects() -> None:
    assert isinstance(tracer_for(None, "m"), NoTracer)
