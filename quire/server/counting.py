"""A counter and a histogram that cost next to nothing to feed: every token of every stream goes through them.

The metrics library's own take a lock and go through all buckets each time. Fed by one thread, the event loop's; read by
the library at scrape time. Called by `Metrics`.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class Count(Collector):
    """A number that grows.

    Args:
        name, about, labels: of its one series.
    """

    def __init__(self, name: str, about: str, labels: Mapping[str, str]) -> None:
        self._name, self._about, self._labels = name, about, labels
        self._value = 0.0

    def add(self, more: float) -> None:
        """Count `more`."""
        self._value += more

    def collect(self) -> Iterable[Metric]:
        """The series."""
        family = CounterMetricFamily(self._name, self._about, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), self._value)
        yield family


class Distribution(Collector):
    """How many values fell into which range.

    Args:
        name, about, labels: of its series.
        bounds: upper ends of the ranges, rising; a value on a bound belongs below it. The last range has no end.
    """

    def __init__(self, name: str, about: str, labels: Mapping[str, str], bounds: Sequence[float]) -> None:
        self._name, self._about, self._labels = name, about, labels
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def collect(self) -> Iterable[Metric]:
        """The series: values up to each bound, and their sum."""
        family = HistogramMetricFamily(self._name, self._about, labels=list(self._labels))
        ends = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        values = list(zip(ends, accumulate(self._counts), strict=True))
        family.add_metric(list(self._labels.values()), values, self._sum)
        yield family
