"""Choosing a provider: the order counts, refusals are kept, the reference is always last; and sharing within a step."""

from typing import Any

import pytest

from quire.ops.registry import OPS, Op, Provider, choose, op, provide
from quire.ops.samples import step_over

pytestmark = pytest.mark.torch


@pytest.fixture
def double() -> Any:
    @op(samples=lambda: [(None, {"x": 2})])
    def doubled_for_a_test(x: int) -> int:
        return 2 * x

    yield doubled_for_a_test
    del OPS["doubled_for_a_test"]


def test_an_op_runs_its_reference(double: Op) -> None:
    assert double(4) == 8
    assert OPS["doubled_for_a_test"] is double


def test_the_first_provider_that_does_not_refuse_is_chosen(double: Op) -> None:
    provide("slow", double)(lambda x: x + x)
    provide("fast", double, lambda spec: "even numbers only" if spec % 2 else None)(lambda x: x << 1)
    assert choose(double, 4, ["fast", "slow"]).provider == "fast"
    second = choose(double, 3, ["missing", "fast", "slow"])
    assert second.provider == "slow" and second.function(3) == 6
    assert second.refused == {"missing": "not implemented", "fast": "even numbers only"}


def test_the_reference_is_last_and_always_there(double: Op) -> None:
    assert choose(double, 1, []).provider == "reference"
    assert choose(double, 1, ["missing"]).refused == {"missing": "not implemented"}


class Rows:
    """Something with as many rows as said."""

    def __init__(self, rows: int) -> None:
        self.shape = (rows, 1)


def test_providers_share_an_op_by_the_number_of_tokens(double: Op) -> None:
    provide("few", double, tokens=(1, 16))(lambda x: "few")
    provide("some", double, tokens=lambda spec: (1, 64 if spec == "wide" else 100))(lambda x: "some")
    provide("most", double, tokens=(5, None))(lambda x: "most")
    choice = choose(double, "wide", ["few", "some", "most"])
    served = {n: choice.function(Rows(n)) for n in (0, 1, 4, 16, 17, 64, 65, 128, 129, 5000)}
    assert [served[n] for n in (0, 1, 4, 16)] == ["few"] * 4 and [served[n] for n in (17, 64)] == ["some"] * 2
    assert [served[n] for n in (65, 128, 129, 5000)] == ["most"] * 4
    assert choice.provider == "few (1-16 tokens), some (17-64 tokens), most (65+ tokens)"
    # 100 tokens end within a bucket: the provider serves those below it.
    assert choose(double, "narrow", ["some", "most"]).table[0].last == 64


def test_what_providers_leave_goes_to_the_last(double: Op) -> None:
    provide("few", double, tokens=(1, 4))(lambda x: "few")
    choice = choose(double, None, ["few"])
    assert [(s.first, s.last, s.provider) for s in choice.table] == [(0, 4, "few"), (5, None, "reference")]
    instead = Provider("composed", lambda x: "composed", lambda spec: None)
    assert choose(double, None, ["few"], instead).function(Rows(9)) == "composed"
    assert choose(double, None, ["missing"], instead).function is instead.function


def test_one_provider_for_all_is_called_directly(double: Op) -> None:
    provide("all", double, tokens=(1, None))(lambda x: x)
    choice = choose(double, None, ["all"])
    assert choice.function is double.providers["all"].function and choice.provider == "all"


def test_a_step_works_things_out_once() -> None:
    step, calls = step_over([1], [3], [[2]], 4), []

    def make() -> int:
        calls.append(1)
        return 7

    assert [step.once("mask", make), step.once("mask", make), step.once("other", make)] == [7, 7, 7]
    assert len(calls) == 2
    assert step_over([1], [3], [[2]], 4).derived == {}


def test_a_step_over_pages_says_where_tokens_go() -> None:
    step = step_over([2, 1, 1], [5, 1, 0], [[3, 1], [2], []], 4)
    assert step.positions.tolist() == [3, 4, 0, 0]
    assert step.groups[0].slots.tolist() == [3 * 4 + 3, 1 * 4, 2 * 4, 0]
    assert step.query_start.tolist() == [0, 2, 3, 4] and step.logit_rows.tolist() == [1, 2, 3]
    assert step.groups[0].page_table.tolist() == [[3, 1], [2, 0], [0, 0]]
