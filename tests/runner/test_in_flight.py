"""Steps whose samples wait for the tokens of the step before."""

import math

import pytest
import torch

from quire.messages.plan import TokenLogprobs
from quire.runner.in_flight import InFlight
from quire.sampling.samples import Samples

pytestmark = pytest.mark.torch


class Grammars:
    """Notes which rows are led on, and how often."""

    def __init__(self, told: list[str]) -> None:
        self.told = told

    def advance(self, rows: list[int], tokens: list[int], errors: dict[int, str]) -> list[int]:
        self.told.append(f"advance {tokens}")
        return []


def steps(told: list[str]) -> tuple[InFlight, InFlight]:
    def draw(token: int) -> Samples:
        told.append(f"draw {token}")
        return Samples([0], torch.tensor([[token], [0]]))

    first, second = (InFlight(number, [0], sampler=Grammars(told)) for number in (1, 2))  # type: ignore[arg-type]
    first.samples = draw(7)
    second.follow(first, lambda: draw(8))
    return first, second


@pytest.mark.parametrize("last", [-0.25, math.nan])
def test_a_prompt_that_is_not_finite_is_found_without_unpacking_its_entries(
    last: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [TokenLogprobs.of([7, 3, 9], [value, -0.5, -2.0], 1) for value in (-1.0, last)]
    assert [entry.chosen for entry in entries] == pytest.approx([-1.0, last], nan_ok=True)
    monkeypatch.setattr(TokenLogprobs, "logprobs", property(lambda entry: pytest.fail("unpacked in the step loop")))
    result = InFlight(1, prompt_logprobs={0: entries[:1], 4: entries}).result()
    assert result.bad == ([4] if math.isnan(last) else [])


def test_a_step_draws_as_soon_as_the_result_before_it_is_known() -> None:
    first, second = steps(told := [])
    assert not first.settled and second.samples is None
    assert first.result().tokens == [7] and first.settled
    assert told == ["draw 7", "advance [7]", "draw 8"]
    assert second.result().tokens == [8]
    assert told[3:] == ["advance [8]"]


def test_a_step_that_is_asked_first_asks_the_one_before() -> None:
    first, second = steps(told := [])
    assert second.result().tokens == [8]
    assert told == ["draw 7", "advance [7]", "draw 8", "advance [8]"]
    assert first.result().tokens == [7] and len(told) == 4


def test_to_wait_is_to_draw_but_not_to_read() -> None:
    first, second = steps(told := [])
    first.wait()
    assert not first.settled and told == ["draw 7"]
    second.wait()
    assert not second.settled and told == ["draw 7", "advance [7]", "draw 8"]
    assert (first.result().tokens, second.result().tokens) == ([7], [8])
    assert told[3:] == ["advance [8]"]
