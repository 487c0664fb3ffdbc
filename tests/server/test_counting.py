"""What is counted for every token says the same as the metrics library's own counters and histograms."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from quire.server.counting import Count, Distribution

pytestmark = pytest.mark.plain

BOUNDS = (0.001, 0.5, 1, 20, 200_000)


@given(st.lists(st.one_of(st.sampled_from(BOUNDS), st.floats(0, 1e6)), max_size=30))
def test_scraped_text_is_that_of_the_library(values: list[float]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    gaps, tokens = Distribution("gaps", "Gaps.", {"model": "m"}, BOUNDS), Count("tokens", "Tokens.", {"model": "m"})
    ours.register(gaps)
    ours.register(tokens)
    library = Histogram("gaps", "Gaps.", ["model"], buckets=BOUNDS, registry=theirs).labels("m")
    counter = Counter("tokens", "Tokens.", ["model"], registry=theirs).labels("m")
    for value in values:
        gaps.observe(value)
        tokens.add(value)
        library.observe(value)
        counter.inc(value)
    said = [line for line in generate_latest(theirs).decode().splitlines() if "_created" not in line]
    assert generate_latest(ours).decode().splitlines() == said
