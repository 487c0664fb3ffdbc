"""Who may still enter: limits in sequences and tokens, room for others beside a flood, a hint that fits the pace."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.server.admission import Admission, Limits
from quire.server.errors import ApiError

pytestmark = pytest.mark.plain


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def refused(admission: Admission, caller: str = "") -> ApiError | None:
    try:
        admission.check(caller)
    except ApiError as error:
        return error
    return None


def test_one_caller_may_take_everything_and_no_more() -> None:
    admission = Admission(Limits(4, 1000))
    with admission.enter(3, 10, "a"), admission.enter(1, 10, "a"):
        assert admission.open == 4
        error = refused(admission, "a")
        assert error is not None and (error.status, error.code) == (503, "queue_full")
    assert refused(admission, "a") is None and admission.open == 0


def test_tokens_are_bounded_too() -> None:
    admission = Admission(Limits(100, 1000))
    with admission.enter(1, 1000, "a"):
        error = refused(admission, "a")
        assert error is not None and "tokens" in error.message


def test_a_flood_leaves_room_for_others() -> None:
    admission = Admission(Limits(8, 1000))
    with admission.enter(8, 8, "flood"):
        assert refused(admission, "flood") is not None
        assert refused(admission, "other") is None
        with admission.enter(4, 4, "other"):
            assert refused(admission, "other") is not None


def test_nobody_enters_a_server_that_stops() -> None:
    admission = Admission(Limits(8, 1000))
    admission.draining = True
    error = refused(admission)
    assert error is not None and (error.code, error.headers["Retry-After"]) == ("shutting_down", "10")


@pytest.mark.parametrize(("seconds_each", "least", "most"), [(0.01, 1, 2), (30.0, 30, 60)])
def test_the_hint_follows_the_pace(seconds_each: float, least: int, most: int) -> None:
    clock = Clock()
    admission = Admission(Limits(64, 10**6), clock)
    for _ in range(50):
        with admission.enter(4):
            clock.now += seconds_each
    with admission.enter(64):
        error = refused(admission)
        assert error is not None
        assert least <= int(error.headers["Retry-After"]) <= most


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 3), st.booleans()), max_size=60))
def test_what_is_open_stays_bounded(plays: list[tuple[str, int, bool]]) -> None:
    admission = Admission(Limits(6, 10**9))
    held = []
    for caller, sequences, leave in plays:
        if leave and held:
            held.pop(0).__exit__(None, None, None)
        place = admission.enter(sequences, sequences, caller)
        try:
            place.__enter__()
            held.append(place)
        except ApiError:
            pass
        # k callers with a k-th each (6 + 3 + 2 + 2), each of which may overshoot once by less than its last request.
        assert admission.open <= 13 + 4 * 2
    for place in held:
        place.__exit__(None, None, None)
    assert admission.open == 0 and not admission._sequences and not admission._tokens
