"""Prometheus metrics, on vLLM's names with the prefix `quire:`.

Label values come from closed sets (routes, reasons, one model name), never from what a client sent: ten thousand
different model names make no new series. What the core counts is read from its last statistics at scrape time.
"""

import time
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from quire.messages.control import Tally
from quire.messages.outputs import RequestOutput
from quire.messages.wire import EngineFacts, Stats
from quire.server.counting import Count, Distribution
from quire.server.tallies import total
from quire.server.tracing import NO_TRACE, Trace

METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS"})
REASONS = ("stop", "length", "abort", "error")
SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
GAP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000)


class HasStats(Protocol):
    """Something that knows how the core fares."""

    @property
    def stats(self) -> Stats:
        """Of the last step."""

    @property
    def facts(self) -> EngineFacts:
        """Of the core that runs now."""


class Metrics:
    """Everything that /metrics shows.

    Args:
        engine: whose core is described.
        model: the label `model_name` of all series.
        routes: the paths that get a series of their own; all others are one.
    """

    def __init__(self, engine: HasStats, model: str, routes: Collection[str]) -> None:
        self.registry = CollectorRegistry()
        self._about = CollectorRegistry()
        self._about.register(CoreCollector(engine, model))
        self._routes = frozenset(routes)
        self._http = Counter(
            "quire:http_requests",
            "Answers by route, method and status.",
            ["route", "method", "status"],
            registry=self.registry,
        )
        labels = {"model_name": model}

        def counter(name: str, about: str) -> Count:
            found = Count(f"quire:{name}", about, labels)
            self.registry.register(found)
            return found

        def histogram(name: str, about: str, bounds: Sequence[float]) -> Distribution:
            found = Distribution(f"quire:{name}", about, labels, bounds)
            self.registry.register(found)
            return found

        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of admitted requests.")
        self.generation_tokens = counter("generation_tokens", "Tokens generated.")
        self.first_token_s = histogram("time_to_first_token_seconds", "Wait for the first token.", SECONDS)
        self.gap_s = histogram("inter_token_latency_seconds", "Time between tokens, streamed requests.", GAP_SECONDS)
        self.whole_s = histogram("e2e_request_latency_seconds", "Time from request to last token.", SECONDS)
        self.prompt_len = histogram("request_prompt_tokens", "Prompt tokens per request.", TOKENS)
        self.output_len = histogram("request_generation_tokens", "Generated tokens per request.", TOKENS)
        ended = Counter(
            "quire:request_success",
            "Completions ended, by reason.",
            [*labels, "finished_reason"],
            registry=self.registry,
        )
        self.ended = {reason: ended.labels(model, reason) for reason in REASONS}

    def answered(self, path: str, method: str, status: int) -> None:
        """Count an HTTP answer."""
        route = path if path in self._routes else "other"
        self._http.labels(route, method if method in METHODS else "other", str(status)).inc()

    def tallies(self) -> list[Tally]:
        """What this process has counted, as plain values."""
        return [
            Tally(
                family.name,
                family.documentation,
                family.type,
                [(sample.name, sample.labels, sample.value) for sample in family.samples],
            )
            for family in self.registry.collect()
        ]

    def render(self, others: Iterable[list[Tally]] = ()) -> bytes:
        """The text of /metrics, with what `others` have counted."""
        together = CollectorRegistry()
        together.register(Sum(total([self.tallies(), *others])))
        return generate_latest(self._about) + generate_latest(together)


class Sum(Collector):
    """Counters of several processes, for the library to write down."""

    def __init__(self, tallies: list[Tally]) -> None:
        self._tallies = tallies

    def collect(self) -> Iterable[Metric]:
        """Each family."""
        for tally in self._tallies:
            family = Metric(tally.name, tally.about, tally.kind)
            for name, labels, value in tally.samples:
                family.add_sample(name, labels, value)
            yield family


class CoreCollector(Collector):
    """Gauges and counters that the core keeps, read when somebody looks."""

    def __init__(self, engine: HasStats, model: str) -> None:
        self._engine = engine
        self._model = model

    def collect(self) -> Iterable[Metric]:
        """The series of the core's last statistics."""
        stats = self._engine.stats
        yield self._gauge("num_requests_running", "Sequences that compute.", stats.running)
        yield self._gauge("num_requests_waiting", "Sequences that wait.", stats.waiting)
        yield self._gauge("kv_cache_usage_perc", "Share of pages in use, 0 to 1.", stats.kv_usage)
        yield self._counter(
            "prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", stats.prefix_queries
        )
        yield self._counter("prefix_cache_hits", "Prompt tokens found in the prefix cache.", stats.prefix_hits)
        yield self._counter("num_preemptions", "Sequences put back because pages ran out.", stats.preemptions)
        yield self._counter("engine_steps", "Steps of the engine.", stats.steps)
        yield self._pages(self._engine.facts)

    def _pages(self, facts: EngineFacts) -> Metric:
        # Of attention where there is any: a recurrent state is no block of tokens.
        group = min(facts.layout.groups, key=lambda group: group.spec.recurrent, default=None)
        about = {
            "model_name": self._model,
            "block_size": str(group.page_size if group else 0),
            "num_gpu_blocks": str(group.pages if group else 0),
            "cache_groups": str(len(facts.layout.groups)),
            "cache_dtype": facts.kv_cache_dtype or facts.dtype,
            "max_model_len": str(facts.max_model_len),
        }
        family = GaugeMetricFamily(
            "quire:cache_config_info", "How the memory of past tokens is cut.", labels=list(about)
        )
        family.add_metric(list(about.values()), 1)
        return family

    def _gauge(self, name: str, about: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"quire:{name}", about, labels=["model_name"])
        family.add_metric([self._model], value)
        return family

    def _counter(self, name: str, about: str, value: float) -> Metric:
        family = CounterMetricFamily(f"quire:{name}", about, labels=["model_name"])
        family.add_metric([self._model], value)
        return family


class Record:
    """The measures of one HTTP request for so many sequences, while it is served."""

    def __init__(self, metrics: Metrics, streamed: bool, sequences: int, trace: Trace = NO_TRACE) -> None:
        self._metrics = metrics
        self._sequences = sequences
        self._trace = trace
        self._reasons: list[str] = []
        self._streamed = streamed
        self._began = time.monotonic()
        self._last: dict[int, float] = {}
        self._tokens = 0
        self._prompts = 0

    def saw(self, prompt: int, output: RequestOutput) -> None:
        """An output of prompt number `prompt` has come."""
        now = time.monotonic()
        metrics = self._metrics
        new = sum([len(completion.token_ids) for completion in output.outputs])
        before = self._last.get(prompt)
        if before is None:
            metrics.prompt_tokens.add(len(output.prompt_token_ids))
            if not self._prompts:
                self._trace.first_token()
            self._prompts += len(output.prompt_token_ids)
            metrics.first_token_s.observe((output.first_token_at or now) - self._began)
        elif self._streamed and new:
            metrics.gap_s.observe((now - before) / new)
        self._last[prompt] = now
        if new:
            self._tokens += new
            metrics.generation_tokens.add(new)
        for completion in output.outputs:
            if completion.finish_reason is not None:
                self._reasons.append(completion.finish_reason)
                metrics.ended[completion.finish_reason].inc()

    def end(self, failure: str | None = None) -> None:
        """The request is over; `failure` is "abort" or "error" if it did not come to its end."""
        self._trace.end(self._prompts, self._tokens, self._reasons, failure)
        if failure is not None:
            # Whose client has gone after the last token has been counted already.
            if len(self._reasons) < self._sequences:
                self._metrics.ended[failure].inc()
            return
        self._metrics.whole_s.observe(time.monotonic() - self._began)
        self._metrics.prompt_len.observe(self._prompts)
        self._metrics.output_len.observe(self._tokens)
