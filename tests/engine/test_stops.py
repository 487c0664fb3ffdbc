"""Stop strings in pieces are found as in the whole text."""

import re
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.engine.stops import StopFinder
from tests.timing import grows_evenly

pytestmark = pytest.mark.plain

alphabet = st.text("ab你", max_size=24)
stop_lists = st.lists(st.text("ab你", min_size=1, max_size=4), min_size=1, max_size=4)


def run(finder: StopFinder, text: str, cuts: list[int]) -> list[str]:
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [finder.push(text[a:b]) for a, b in pairwise(edges)] + [finder.flush()]


@given(alphabet, stop_lists, st.lists(st.integers(0, 30), max_size=8), st.booleans())
def test_pieces_are_searched_as_the_whole(text: str, stops: list[str], cuts: list[int], include: bool) -> None:
    # The oracle knows nothing of automata: the leftmost match of any stop string, the shortest first.
    found = re.search("|".join(re.escape(stop) for stop in sorted(stops, key=len)), text)
    expected = text if not found else text[: found.end() if include else found.start()]
    finder = StopFinder(stops, include)
    released = run(finder, text, cuts)
    assert "".join(released) == expected
    assert (finder.match is None) == (found is None)
    if finder.match and found:
        assert (finder.match.start, finder.match.end, finder.match.stop) == (*found.span(), found.group())
    assert finder.released == len(expected)


@given(alphabet, stop_lists)
def test_text_waits_only_while_a_stop_may_begin_in_it(text: str, stops: list[str]) -> None:
    finder = StopFinder(stops)
    out = ""
    for end, char in enumerate(text, 1):
        out += finder.push(char)
        if finder.match:
            break
        held = text[len(out) : end]
        assert not held or any(stop.startswith(held) for stop in stops) or any(stop in held for stop in stops)


def test_an_earlier_start_is_waited_for() -> None:
    finder = StopFinder(["b", "abc"])
    assert [finder.push("xa"), finder.push("b")] == ["x", ""]
    assert finder.match is None
    assert finder.push("c") == ""
    assert finder.match is not None and finder.match.stop == "abc"
    other = StopFinder(["b", "abc"])
    assert other.push("xab") + other.push("d") == "xa"
    assert other.match is not None and other.match.stop == "b"


def test_nothing_follows_a_match() -> None:
    finder = StopFinder(["stop"])
    assert finder.push("go stop go") == "go "
    assert finder.push("more") == finder.flush() == ""


def test_stops_before_min_tokens_are_passed_over() -> None:
    finder = StopFinder(["."])
    assert finder.push("a.b", may_stop=False) == "a.b"
    assert finder.push("c.d") == "c"


def test_a_stop_may_begin_before_min_tokens() -> None:
    finder = StopFinder(["end"])
    assert finder.push("x en", may_stop=False) == "x "
    assert finder.push("d y") == ""
    assert finder.match is not None


def test_work_grows_with_the_text() -> None:
    stops = ["a" * 50 + "b", *("a" * n + "c" for n in range(1, 15))]

    def seconds(length: int) -> float:
        finder = StopFinder(stops)
        start = time.thread_time()
        for _ in range(length):
            finder.push("a")
        return time.thread_time() - start

    assert grows_evenly(seconds, 40_000)
