"""Traces: one span per request with what it asked and took, sent to a collector of OpenTelemetry.

Needs the extra `otel` and `--otlp-traces-endpoint`; without them nothing here costs anything. A `traceparent` that the
client sends (W3C Trace Context) becomes the span's parent. Attributes are those of OpenTelemetry's conventions for
generative AI; prompts and answers are never part of a span.
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Protocol

from quire.base.errors import ConfigError
from quire.messages.params import SamplingParams
from quire.version import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span


class Trace(Protocol):
    """One request's."""

    def first_token(self) -> None:
        """The first token has come."""

    def end(self, prompt: int, output: int, reasons: Collection[str], failure: str | None) -> None:
        """The request is over: tokens of prompts and outputs, why completions ended, what went wrong."""


class Tracer(Protocol):
    """What makes traces."""

    def begin(self, id: str, params: SamplingParams, headers: Mapping[str, str]) -> Trace:
        """The trace of a request that begins now."""
        ...

    def close(self) -> None:
        """Send what has not been sent."""


class NoTrace:
    """Traces nothing."""

    def first_token(self) -> None:
        """Nothing."""

    def end(self, prompt: int, output: int, reasons: Collection[str], failure: str | None) -> None:
        """Nothing."""


NO_TRACE = NoTrace()


class NoTracer:
    """Where nobody collects traces."""

    def begin(self, id: str, params: SamplingParams, headers: Mapping[str, str]) -> Trace:
        """The trace that traces nothing."""
        return NO_TRACE

    def close(self) -> None:
        """Nothing."""


class OtelTracer:
    """Sends spans by OTLP over HTTP.

    Args:
        provider: of OpenTelemetry's SDK.
        model: name of the served model.
    """

    def __init__(self, provider: "TracerProvider", model: str) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("quire", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._model = model

    def begin(self, id: str, params: SamplingParams, headers: Mapping[str, str]) -> Trace:
        """A span below the client's."""
        from opentelemetry.trace import SpanKind

        asked: dict[str, str | int | float] = {
            "gen_ai.operation.name": "text_completion",
            "gen_ai.provider.name": "quire",
            "gen_ai.request.model": self._model,
            "gen_ai.request.id": id,
            "gen_ai.request.choice.count": params.n,
            "gen_ai.request.temperature": params.temperature,
            "gen_ai.request.top_p": params.top_p,
            "gen_ai.request.top_k": params.top_k,
        }
        if params.max_tokens is not None:
            asked["gen_ai.request.max_tokens"] = params.max_tokens
        parent = self._propagator.extract(headers)
        return OtelTrace(self._tracer.start_span("llm_request", parent, SpanKind.SERVER, asked))

    def close(self) -> None:
        """Send what waits."""
        self._provider.shutdown()


class OtelTrace:
    """A span that is open."""

    def __init__(self, span: "Span") -> None:
        self._span = span

    def first_token(self) -> None:
        """An event in the span."""
        self._span.add_event("gen_ai.first_token")

    def end(self, prompt: int, output: int, reasons: Collection[str], failure: str | None) -> None:
        """Close the span."""
        from opentelemetry.trace import StatusCode

        self._span.set_attribute("gen_ai.usage.input_tokens", prompt)
        self._span.set_attribute("gen_ai.usage.output_tokens", output)
        self._span.set_attribute("gen_ai.response.finish_reasons", list(reasons))
        if failure is not None:
            self._span.set_attribute("error.type", failure)
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


def tracer_for(endpoint: str | None, model: str) -> Tracer:
    """What traces to `endpoint` (an OTLP/HTTP address such as http://localhost:4318/v1/traces), or nothing.

    Raises ConfigError where the extra is not installed.
    """
    if endpoint is None:
        return NoTracer()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError("otlp_traces_endpoint: traces need an extra; pip install 'quire[otel]'") from error
    provider = TracerProvider(resource=Resource.create({"service.name": "quire", "service.version": __version__}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return OtelTracer(provider, model)
