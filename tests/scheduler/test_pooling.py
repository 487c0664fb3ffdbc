"""Sequences that are pooled: they end with their prompt, bring no token, and those of encoders are never cut."""

import pytest

from quire.base.errors import RequestError
from quire.messages.params import SamplingParams
from quire.messages.plan import StepPlan, StepResult
from quire.messages.pooling import Pooling
from quire.messages.request import Request
from quire.messages.state import GroupLayout, Layout, StateSpec
from quire.scheduler.limits import Limits
from quire.scheduler.scheduler import Scheduler

pytestmark = pytest.mark.plain

PAGED = Layout([GroupLayout(StateSpec(8), 1, 4, 20)], 64)
UNPAGED = Layout([], 64)


def request(id: str, tokens: int, *, every_token: bool = True) -> Request:
    pooling = Pooling("embed", 4, True, "none", every_token, tokens, tokens)
    return Request(id=id, token_ids=list(range(tokens)), params=SamplingParams(max_tokens=1), pooling=pooling)


def run(scheduler: Scheduler) -> tuple[list[StepPlan], dict[str, bytes]]:
    """Serve all that waits; each row's vector is its number."""
    plans: list[StepPlan] = []
    vectors: dict[str, bytes] = {}
    left: dict[int, int] = {}
    while (plan := scheduler.plan(0.0)) is not None:
        plans.append(plan)
        left |= {new.row: new.prompt_len - new.computed for new in plan.new}
        for grant in plan.grants:
            left[grant.row] -= grant.tokens
            assert not grant.samples
        done = {grant.row: bytes([grant.row]) for grant in plan.grants if not left[grant.row]}
        for delta in scheduler.commit(StepResult(plan.step, [], [], vectors=done)):
            assert (delta.token_ids, delta.finish_reason) == ([], "stop")
            assert delta.vector is not None
            vectors[delta.id] = delta.vector
        scheduler.check()
    return plans, vectors


def test_a_prompt_is_computed_in_chunks_and_ends_without_a_token() -> None:
    scheduler = Scheduler(Limits(max_num_seqs=2, max_num_batched_tokens=7), PAGED)
    for id, tokens in (("a", 15), ("b", 1), ("c", 8)):
        scheduler.add(request(id, tokens), 0.0)
    plans, vectors = run(scheduler)
    assert set(vectors) == {"a", "b", "c"}
    assert [sum(grant.tokens for grant in plan.grants) for plan in plans] == [7, 7, 2, 7, 1]
    assert not scheduler.has_work and scheduler.counters.finished == 3


def test_whole_texts_are_never_cut() -> None:
    scheduler = Scheduler(Limits(max_num_seqs=8, max_num_batched_tokens=20, whole=True, prefix_caching=False), UNPAGED)
    lengths = {"a": 15, "b": 15, "c": 5, "d": 20}
    for id, tokens in lengths.items():
        scheduler.add(request(id, tokens), 0.0)
    plans, vectors = run(scheduler)
    assert set(vectors) == set(lengths)
    assert [sorted(grant.tokens for grant in plan.grants) for plan in plans] == [[5, 15], [15], [20]]


@pytest.mark.parametrize("every_token", [True, False])
def test_a_prefix_counts_only_where_the_last_token_is_all(every_token: bool) -> None:
    scheduler = Scheduler(Limits(max_num_seqs=2, max_num_batched_tokens=32), PAGED)
    for id in ("a", "b"):
        scheduler.add(request(id, 13, every_token=every_token), 0.0)
        plans, _ = run(scheduler)
    assert plans[0].new[0].computed == (0 if every_token else 12)


def test_a_text_as_long_as_the_context_fits_and_one_token_more_does_not() -> None:
    scheduler = Scheduler(Limits(max_num_seqs=2, max_num_batched_tokens=64), PAGED)
    scheduler.add(request("a", 64), 0.0)
    with pytest.raises(RequestError, match="65 tokens"):
        scheduler.add(request("b", 65), 0.0)
    assert set(run(scheduler)[1]) == {"a"}


def test_a_row_that_is_not_finite_ends_with_an_error_and_an_abort_leaves_nothing() -> None:
    scheduler = Scheduler(Limits(max_num_seqs=2, max_num_batched_tokens=64), PAGED)
    scheduler.add(request("a", 9), 0.0)
    scheduler.add(request("b", 9), 0.0)
    plan = scheduler.plan(0.0)
    assert plan is not None
    scheduler.abort("b")
    (delta,) = scheduler.commit(StepResult(plan.step, [], [], bad=[plan.grants[0].row]))
    assert (delta.id, delta.finish_reason, delta.vector) == ("a", "error", None)
    scheduler.check()
    assert not scheduler.has_work
