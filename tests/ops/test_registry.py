"""Choosing a provider: the order counts, refusals are kept, the reference is always last; and sharing within a step."""

from typing import Any

import pytest

from quire.ops.registry import OPS, Op, choose, op, provide
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
