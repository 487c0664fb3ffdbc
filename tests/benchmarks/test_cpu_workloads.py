"""The workloads of the CPU table: the same for every engine, never the same twice, and limits that follow from them."""

import itertools

import pytest

from benchmarks.lib.cpu_workloads import WORKLOADS, Cost, Machine, Workload, limit

pytestmark = pytest.mark.plain


def test_workloads_are_what_the_table_says() -> None:
    shapes = {
        name: (len(w.prompts), {len(p) for p in w.prompts}, set(w.outputs))
        for name, w in ((name, make(0)) for name, make in WORKLOADS.items())
        if name != "C2"
    }
    assert shapes == {"A": (1, {128}, {128}), "B": (1, {1024}, {1}), "C1": (16, {128}, {64}), "D": (16, {1056}, {32})}
    mixed = WORKLOADS["C2"](0)
    assert len(mixed.prompts) == 32
    assert all(32 <= len(p) <= 512 and 16 <= n <= 128 for p, n in zip(mixed.prompts, mixed.outputs, strict=True))
    assert len({tuple(p[:1024]) for p in WORKLOADS["D"](0).prompts}) == 1


def test_engines_get_the_same_tokens_and_nobody_meets_a_prompt_again() -> None:
    made = [make(seed) for make in WORKLOADS.values() for seed in (0, 1)]
    assert made == [make(seed) for make in WORKLOADS.values() for seed in (0, 1)]
    for a, b in itertools.combinations(made, 2):
        assert a.prompts[0][:16] != b.prompts[0][:16]


def test_limits_count_bytes_operations_and_a_shared_prefix_once() -> None:
    cost, machine = Cost(weight_bytes=100.0, body=50.0, head=10.0, state_bytes=1.0, pair=0.0), Machine(10.0, 1e9)
    # Two steps follow the first token; each reads the weights and what is kept of the tokens so far.
    one = Workload([[1, 2, 3]], [3], "seconds")
    assert limit(one, cost, machine) == pytest.approx((100 + 4 + 100 + 5) / 10)
    both = Workload([[1, 2, 3], [1, 2, 4]], [2, 2], "seconds")
    assert limit(both, cost, machine) == pytest.approx((100 + 2 + 2 * 2) / 10)
    # Two rows are multiplied, and where that takes longer than reading it is what counts.
    assert limit(both, cost, Machine(1e9, 10.0)) == pytest.approx((2 * (4 * 50 + 2 * 10) + 2 * 60 * 2) / 10)


def test_figures() -> None:
    work = Workload([[1] * 8], [5], "decode tok/s")
    assert work.score(3.0, 1.0) == 2.0
    assert Workload([[1] * 8], [1], "prompt tok/s").score(2.0) == 4.0
    assert Workload([[1] * 8] * 2, [5, 7], "output tok/s").score(3.0) == 4.0
    assert Workload([[1] * 8], [1], "seconds").score(3.0) == 3.0
