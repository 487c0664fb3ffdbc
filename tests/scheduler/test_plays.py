"""Short plays: who is granted how many tokens in which step."""

import pytest

from quire.base.errors import RequestError
from quire.messages.plan import StepResult
from quire.messages.state import Retention
from quire.messages.structured import StructuredOutputsParams, grammar_key
from tests.scheduler.engine import EOS, Engine, layout_of

pytestmark = pytest.mark.plain


def check_all(engine):
    engine.finish_all()
    for key in engine.heard:
        engine.check_said(key)


def test_a_prompt_is_computed_then_one_token_a_step():
    engine = Engine()
    engine.add(prompt=9, max_tokens=3)
    assert [engine.step() for _ in range(4)] == ["A9", "A1", "A1", ""]
    assert not engine.scheduler.has_work
    assert engine.heard["A", 0].finish_reason == "length"
    check_all(engine)


def test_long_prompts_share_the_budget_with_those_that_run():
    engine = Engine(max_num_batched_tokens=10)
    engine.add(prompt=6)
    engine.add(prompt=23)
    assert [engine.step() for _ in range(5)] == ["A6 B4", "A1 B9", "A1 B9", "A1 B1", "B1"]
    check_all(engine)


def test_few_prompts_go_one_after_the_other_where_no_larger_step_is_recorded():
    engine = Engine(max_num_batched_tokens=32, recorded_tokens=8)
    for prompt in (3, 5, 6, 2):
        engine.add(prompt=prompt)
    # Eight tokens are recorded, and no more than twice as many wait.
    assert [engine.step() for _ in range(2)] == ["A3 B5", "A1 B1 C6 D2"]
    check_all(engine)


def test_many_prompts_share_a_step_though_it_is_not_recorded():
    engine = Engine(max_num_batched_tokens=32, recorded_tokens=8)
    for prompt in (6, 6, 5):
        engine.add(prompt=prompt)
    assert engine.step() == "A6 B6 C5"
    engine.add(prompt=12)
    engine.add(prompt=2)
    assert [engine.step() for _ in range(2)] == ["A1 B1 C1 D12", "A1 B1 C1 D1 E2"]
    check_all(engine)


def test_prompts_that_are_held_for_a_grammar_make_no_step_worth_launching():
    engine = Engine(max_num_batched_tokens=32, recorded_tokens=8)
    held = StructuredOutputsParams(regex="a+")
    engine.scheduler.hold(grammar_key(held))
    for prompt, form in ((6, None), (5, None), (12, held)):
        engine.add(prompt=prompt, structured_outputs=form)
    assert engine.step() == "A6"
    engine.scheduler.ready(grammar_key(held))
    engine.add(prompt=6)
    assert engine.step() == "A1 B5 C12 D6"
    check_all(engine)


def test_overlap_plans_a_token_that_only_the_device_knows():
    engine = Engine(depth=2)
    engine.add(prompt=3, max_tokens=3)
    assert engine.step() == "A3"
    assert engine.heard["A", 0].tokens == []
    assert engine.step() == "A1"
    assert len(engine.heard["A", 0].tokens) == 1
    assert engine.step() == "A1"
    # The third sample is in flight, so that it is sure to end: no fourth plan.
    assert engine.step() == ""
    check_all(engine)


def test_across_stages_a_sequence_waits_for_its_own_token():
    engine = Engine(depth=4, chain=False, max_num_batched_tokens=4)
    engine.add(prompt=10, max_tokens=2)
    assert [engine.step() for _ in range(4)] == ["A4", "A4", "A2", ""]
    check_all(engine)


def test_a_shared_prefix_is_computed_once():
    engine = Engine(layout_of([Retention()], page_size=4))
    prefix = list(range(12))
    engine.add([*prefix, 40], max_tokens=2)
    engine.add([*prefix, 41], max_tokens=2)
    # B waits one step for the pages that A fills, and then computes only its own token.
    assert [engine.step() for _ in range(3)] == ["A13", "A1 B1", "B1"]
    assert engine.scheduler.stats().prefix_hits == 12
    check_all(engine)


def test_a_hit_never_covers_the_last_prompt_token():
    engine = Engine(layout_of([Retention()], page_size=4))
    engine.add(list(range(8)), max_tokens=1)
    engine.add(list(range(8)), max_tokens=1)
    assert [engine.step() for _ in range(2)] == ["A8", "B4"]


def test_salts_and_a_switched_off_cache_share_nothing():
    for first, second, caching in (("x", "y", True), ("x", "x", False)):
        engine = Engine(prefix_caching=caching)
        engine.add(list(range(8)), max_tokens=1, cache_salt=first)
        engine.add(list(range(8)), max_tokens=1, cache_salt=second)
        assert engine.step() == "A8 B8"
        check_all(engine)


@pytest.mark.parametrize("caching", [True, False])
def test_siblings_follow_the_leader_and_recompute_one_page_tail(caching):
    engine = Engine(layout_of([Retention()], page_size=4), prefix_caching=caching)
    engine.add(list(range(10)), n=3, max_tokens=2)
    assert [engine.step() for _ in range(3)] == ["A10", "A1 A.1:2 A.2:2", "A.1:1 A.2:1"]
    check_all(engine)
    assert len({tuple(said.tokens) for said in engine.heard.values()}) > 1, "siblings must have noise of their own"


def test_siblings_start_when_the_leader_is_gone():
    engine = Engine(max_num_batched_tokens=4)
    engine.add(list(range(10)), n=2, max_tokens=2)
    assert engine.step() == "A4"
    engine.scheduler.finish("A", 0, 0)
    engine.silent.add(("A", 0))
    assert engine.step() == "A.1:4"
    check_all(engine)


def test_prompt_logprobs_read_no_prefix_and_come_with_the_first_token():
    engine = Engine(max_num_batched_tokens=8)
    engine.add(list(range(9)), max_tokens=1)
    engine.finish_all()
    engine.add(list(range(9)), n=2, max_tokens=2, prompt_logprobs=0, logprobs=0)
    assert [engine.step() for _ in range(2)] == ["B8", "B1 B.1:1"]
    check_all(engine)
    assert len(engine.heard["B", 0].prompt_logprobs) == 8
    assert engine.heard["B", 1].prompt_logprobs is None


def test_the_youngest_is_preempted_and_comes_back():
    engine = Engine(layout_of([Retention()], pages=6, page_size=4), prefix_caching=False)
    engine.add(prompt=7, max_tokens=8)
    engine.add(prompt=7, max_tokens=8)
    # Five usable pages: A and B hold two each; at nine tokens each wants a third and only one is left.
    assert [engine.step() for _ in range(3)] == ["A7 B7", "A1 B1", "A1"]
    assert engine.scheduler.counters.preemptions == 1
    assert [seq.id for seq in engine.scheduler.roster.waiting] == ["B"]
    check_all(engine)


def test_a_victim_that_plans_hold_is_preempted_when_they_are_in():
    engine = Engine(layout_of([Retention()], pages=6, page_size=4), prefix_caching=False, depth=2)
    engine.add(prompt=7, max_tokens=8)
    engine.add(prompt=7, max_tokens=8)
    assert [engine.step() for _ in range(4)] == ["A7 B7", "A1 B1", "A1", "A1"]
    engine.step()
    assert engine.scheduler.counters.preemptions == 1
    check_all(engine)


def test_a_victim_stops_at_once_and_not_only_at_its_next_page():
    engine = Engine(layout_of([Retention()], pages=5, page_size=8), prefix_caching=False, depth=2)
    engine.add(prompt=15, max_tokens=6)
    engine.add(prompt=9, max_tokens=6)
    # A wants a third page. B has room for five more tokens, but is held back to be preempted.
    assert [engine.step() for _ in range(5)] == ["A15 B1", "A1 B8", "", "A1", "A1"]
    check_all(engine)


def test_priority_preempts_the_least_important():
    engine = Engine(layout_of([Retention()], pages=6, page_size=4), prefix_caching=False, policy="priority")
    engine.add(prompt=7, max_tokens=8, priority=5)
    engine.add(prompt=7, max_tokens=8, priority=1)
    assert [engine.step() for _ in range(3)] == ["B7 A7", "B1 A1", "B1"]
    check_all(engine)


def test_longest_prefix_is_served_first_until_someone_is_overdue():
    engine = Engine(layout_of([Retention()], page_size=4), policy="lpm", max_num_seqs=1)
    shared = list(range(8))
    engine.add([*shared, 30], max_tokens=1)
    assert engine.step() == "A9"
    engine.add(prompt=5, max_tokens=1)
    engine.add([*shared, 31], max_tokens=1)
    assert engine.step() == "C1"
    engine.add([*shared, 32], max_tokens=1)
    engine.clock += 10
    assert engine.step() == "B5"
    check_all(engine)


def test_admission_wants_room_for_all_of_it_but_looks_past_a_blocked_head():
    engine = Engine(layout_of([Retention()], pages=9, page_size=4), prefix_caching=False, max_num_batched_tokens=40)
    engine.add(prompt=16, max_tokens=4)
    engine.add(prompt=20, max_tokens=4)
    engine.add(prompt=4, max_tokens=1)
    assert engine.step() == "A16 C4"
    check_all(engine)


def test_admission_counts_cached_pages_that_it_would_use_as_taken():
    engine = Engine(layout_of([Retention()], pages=6, page_size=4))
    shared = list(range(12))
    engine.add([*shared, 40], max_tokens=1)
    engine.finish_all()
    engine.add(prompt=3, max_tokens=5)
    assert engine.step() == "B3"
    engine.add([*shared, *range(20, 27)], max_tokens=1)
    assert engine.step() == "B1"
    check_all(engine)


def test_a_blocked_head_is_not_passed_for_ever():
    engine = Engine(layout_of([Retention()], pages=9, page_size=4), prefix_caching=False, max_skipped=2)
    engine.add(prompt=16, max_tokens=16)
    engine.step()
    engine.add(prompt=20, max_tokens=4)
    for _ in range(3):
        engine.add(prompt=1, max_tokens=1)
    assert engine.step() == "A1 C1 D1"
    assert engine.step() == "A1"
    check_all(engine)


def test_the_watermark_is_kept_beside_others_and_waived_alone():
    engine = Engine(layout_of([Retention()], pages=6, page_size=4), watermark=0.4, prefix_caching=False)
    engine.add(prompt=15, max_tokens=3)
    engine.add(prompt=3, max_tokens=1)
    assert engine.step() == "A15"
    check_all(engine)


def test_a_window_frees_pages_that_are_no_longer_needed():
    engine = Engine(layout_of([Retention(window=6)], pages=20, page_size=2), prefix_caching=False)
    engine.add(prompt=12, max_tokens=20)
    most = 0
    engine.step()
    while engine.step():
        most = max(most, sum(map(bool, engine.scheduler.roster.pages.groups[0].pool.references)))
    assert most == 4  # five past tokens lie on at most three pages, and one page is being filled
    check_all(engine)


def test_pages_and_row_of_an_ended_sequence_wait_for_the_last_plan():
    engine = Engine(depth=2)
    engine.add(prompt=5, max_tokens=9)
    engine.step()
    engine.step()
    engine.scheduler.abort("A")
    engine.silent.add(("A", 0))
    roster = engine.scheduler.roster
    assert roster.leaving and roster.pages.usage() > 0 and len(roster.rows.free) == 7
    engine.settle()
    assert not roster.leaving and roster.pages.usage() == 0 and len(roster.rows.free) == 8
    engine.add(prompt=5, max_tokens=2)
    assert engine.step() == "B5"
    check_all(engine)


def test_stop_tokens_eos_and_min_tokens():
    engine = Engine()
    alone = engine.add(prompt=5, max_tokens=12)
    engine.finish_all()
    tokens = engine.heard[alone, 0].tokens
    same = {"prompt": [ord("A")] * 5, "max_tokens": 12, "seed": ord("A")}
    stopped = engine.add(**same, stop_token_ids=[tokens[3]])
    ended = engine.add(**same, eos_token_ids=[tokens[3]])
    ignored = engine.add(**same, eos_token_ids=[tokens[3]], ignore_eos=True)
    later = engine.add(**same, eos_token_ids=[tokens[3]], min_tokens=6)
    check_all(engine)
    first = tokens.index(tokens[3]) + 1
    assert (engine.heard[stopped, 0].finish_reason, engine.heard[stopped, 0].stop_reason) == ("stop", tokens[3])
    assert (engine.heard[ended, 0].finish_reason, engine.heard[ended, 0].stop_reason) == ("stop", None)
    assert len(engine.heard[ended, 0].tokens) == first
    assert engine.heard[ignored, 0].tokens == tokens
    assert len(engine.heard[later, 0].tokens) > 6


def test_a_stop_token_among_the_first_min_tokens_does_not_end_it():
    """The sampler masks these; the scheduler does not rely on it."""
    engine = Engine()
    engine.add(prompt=3, max_tokens=9, min_tokens=1, stop_token_ids=[7], eos_token_ids=[EOS])
    told = []
    for token in (7, 7):
        plan = engine.scheduler.plan(0.0)
        told += engine.scheduler.commit(StepResult(plan.step, [0], [token]))
    assert [(delta.token_ids, delta.finish_reason, delta.stop_reason) for delta in told] == [
        ([7], None, None),
        ([7], "stop", 7),
    ]


def test_a_failed_row_ends_alone_and_those_who_share_its_page_start_again():
    engine = Engine(layout_of([Retention()], page_size=4), depth=2)
    prefix = list(range(8))
    engine.add([*prefix, 40], max_tokens=4)
    engine.poisoned.add("A")
    engine.add([*prefix, 41], max_tokens=4)
    assert engine.step() == "A9"
    assert engine.step() == "A1 B1"  # B shares pages that are about to turn out bad
    assert engine.heard["A", 0].finish_reason == "error"
    assert engine.scheduler.counters.restarted == 1
    assert not engine.scheduler.roster.pages.groups[0].index.pages
    engine.finish_all()
    engine.check_said(("B", 0))
    assert engine.heard["B", 0].finish_reason == "length"


def test_a_fault_spreads_to_those_who_share_with_those_who_share():
    engine = Engine(layout_of([Retention()], page_size=4), depth=2, max_num_batched_tokens=8)
    prefix = [1, 2, 3, 4]
    engine.add([*prefix, *range(10, 26)], max_tokens=2)
    engine.poisoned.add("A")
    engine.add([*prefix, *range(30, 38)], max_tokens=2)
    engine.add([*prefix, *range(30, 34), 9], max_tokens=2)
    assert [engine.step() for _ in range(4)] == ["A8", "A8", "A4 B4", "A1 B4 C1"]
    assert engine.heard["A", 0].finish_reason == "error"
    assert engine.scheduler.counters.restarted == 2
    engine.finish_all()
    for key in (("B", 0), ("C", 0)):
        engine.check_said(key)
        assert engine.heard[key].finish_reason == "length"


def test_what_a_preempted_sequence_spoiled_is_not_found_by_itself_again():
    engine = Engine(layout_of([Retention()], pages=6, page_size=4), max_num_batched_tokens=8)
    engine.add(prompt=7, max_tokens=4)
    engine.add(prompt=12, max_tokens=2)
    assert engine.step() == "A7 B1"
    engine.poisoned.add("B")
    assert [engine.step() for _ in range(2)] == ["A1 B7", "A1"]
    assert engine.scheduler.counters.preemptions == 1
    check_all(engine)
    assert engine.heard["B", 0].finish_reason == "length"


def test_a_sample_confirms_no_page_that_a_later_plan_fills():
    engine = Engine(layout_of([Retention()], page_size=4), depth=2)
    engine.add([1, 2, 3], max_tokens=6)
    first = engine.solo(("A", 0)).tokens[0]
    assert engine.step() == "A3"
    engine.poisoned.add("A")
    assert engine.step() == "A1"
    engine.add([1, 2, 3, first, 9], max_tokens=3)
    assert engine.step() == "A1 B1"
    assert engine.heard["A", 0].finish_reason == "error"
    check_all(engine)
    assert engine.heard["B", 0].finish_reason == "length"


def test_a_fault_that_nobody_answers_for_ends_one_and_spares_the_next():
    engine = Engine(layout_of([Retention()], page_size=4), max_num_batched_tokens=8)
    prefix = [1, 2, 3, 4]
    engine.add([*prefix, *range(10, 26)])
    engine.poisoned.add("A")
    assert engine.step() == "A8"
    engine.scheduler.abort("A")
    engine.silent.add(("A", 0))
    engine.add([*prefix, 8], max_tokens=2)
    engine.add([*prefix, *range(30, 46)], max_tokens=2)
    assert engine.step() == "B1 C7"
    assert engine.heard["B", 0].finish_reason == "error"
    check_all(engine)
    assert engine.heard["C", 0].finish_reason == "length"


@pytest.mark.parametrize(("prompt", "max_tokens", "page_size"), [(1, 10, 1), (1, 14, 2), (4, 6, 1), (4, 10, 2)])
def test_pinned_sequences_do_not_wait_for_each_other(prompt, max_tokens, page_size):
    layout = layout_of([Retention()], pages=12, page_size=page_size)
    engine = Engine(layout, prefix_caching=False, max_preemptions=1)
    for _ in range(3):
        engine.add(prompt=prompt, max_tokens=max_tokens)
    check_all(engine)
    assert engine.scheduler.counters.preemptions >= 2


def test_settings_that_fail_on_the_rank_end_with_their_sentence():
    engine = Engine()
    engine.add(prompt=5)
    plan = engine.scheduler.plan(0.0)
    result = engine.device.run(plan, {})
    result.errors[plan.grants[0].row] = "logits processor 0 raised ValueError"
    (delta,) = engine.scheduler.commit(result)
    assert (delta.finish_reason, delta.error) == ("error", "logits processor 0 raised ValueError")
    engine.scheduler.check()
    assert not engine.scheduler.has_work


def test_a_sequence_with_a_logits_processor_does_not_chain():
    engine = Engine(depth=2)
    engine.add(prompt=3, max_tokens=3, logits_processors=[print])
    assert [engine.step() for _ in range(3)] == ["A3", "", "A1"]


def test_what_can_never_fit_is_refused():
    engine = Engine(layout_of([Retention()], pages=5, page_size=4, max_model_len=30))
    with pytest.raises(RequestError, match="30 tokens") as refusal:
        engine.add(prompt=30)
    assert refusal.value.code == "context_length_exceeded"
    with pytest.raises(RequestError, match="memory for pages") as refusal:
        engine.add(prompt=10, max_tokens=7)
    assert refusal.value.code == "kv_capacity"
    assert not engine.scheduler.has_work
    engine.add(prompt=10, max_tokens=6)
    check_all(engine)


def test_unknown_ids_and_steps_change_nothing_but_a_counter():
    engine = Engine()
    engine.add(prompt=5, max_tokens=1)
    plan = engine.scheduler.plan(0.0)
    result = engine.device.run(plan, {})
    engine.scheduler.abort("nobody")
    assert engine.scheduler.finish("nobody", 0, 1) is False
    assert len(engine.scheduler.commit(result)) == 1
    assert engine.scheduler.commit(result) == []
    engine.scheduler.abort("A")
    assert engine.scheduler.counters.ignored == 4
    assert engine.scheduler.counters.finished == 1
    engine.scheduler.check()


def test_reset_forgets_what_nobody_uses():
    engine = Engine()
    engine.add(list(range(8)), max_tokens=1)
    engine.finish_all()
    engine.scheduler.reset_prefix_cache()
    engine.scheduler.check()
    engine.add(list(range(8)), max_tokens=1)
    assert engine.step() == "B8"


def test_seeds_are_drawn_for_requests_without_one_and_kept_otherwise():
    engine = Engine()
    engine.add(prompt=3, seed=None)
    engine.add(prompt=3, seed=None)
    engine.add(prompt=3, seed=7)
    seeds = [new.seed for new in engine.scheduler.plan(0.0).new]
    assert len(set(seeds)) == 3 and seeds[2] == 7
    assert all(0 <= seed < 1 << 63 for seed in seeds)


def test_eos_is_only_for_those_who_heed_it():
    engine = Engine()
    engine.add(prompt=3, eos_token_ids=[EOS], ignore_eos=True)
    engine.add(prompt=3, eos_token_ids=[EOS])
    assert [new.eos_token_ids for new in engine.scheduler.plan(0.0).new] == [[], [EOS]]


def shared_of(plan):
    """What a plan says of its first group: (rows, pages)."""
    return plan.shared and [(group.rows, group.pages) for group in plan.shared[0]]


def test_ranks_are_told_who_begins_alike_and_only_when_that_changes():
    engine = Engine(max_num_batched_tokens=40, shared_rows=3, shared_tokens=8)
    prefix = list(range(12))
    for own, tokens in ((40, 6), (41, 6), (42, 3), (43, 6)):
        engine.add([*prefix, own], max_tokens=tokens)
    plans = [engine.turn() for _ in range(6)]
    # The first computes the prefix, the others find it; the third leaves before the fifth plan.
    assert [shared_of(plan) for plan in plans] == [None, [([0, 1, 2, 3], 3)], None, None, [([0, 1, 3], 3)], None]
    engine.add([*prefix, 44], max_tokens=2)
    plan = engine.turn()
    assert plan.released == [0] and plan.new[0].row == 0
    assert plan.shared is None, "the same rows begin alike as before"
    check_all(engine)


def test_windows_are_never_shared():
    engine = Engine(layout_of([Retention(window=5), Retention(), Retention(chunk=8)]), shared_rows=2, shared_tokens=4)
    for own in (40, 41, 42):
        engine.add([*range(12), own])
    engine.turn()
    told = engine.turn().shared
    assert [[(group.rows, group.pages) for group in groups] for groups in told] == [[], [([0, 1, 2], 3)], []]
    check_all(engine)


def test_without_the_prefix_cache_only_siblings_begin_alike():
    engine = Engine(prefix_caching=False, shared_rows=2, shared_tokens=4)
    engine.add(list(range(12)), n=3)
    engine.add(list(range(12)))
    told = [plan.shared[0] for plan in [engine.turn() for _ in range(4)] if plan.shared]
    assert [(len(group.rows), group.pages) for groups in told for group in groups] == [(3, 2)]
    check_all(engine)


def test_who_is_preempted_shares_no_more_until_it_is_back():
    engine = Engine(layout_of([Retention()], pages=9), shared_rows=2, shared_tokens=4)
    for own in (40, 41, 42):
        engine.add([*range(8), own], max_tokens=16)
    seen = []
    while engine.scheduler.has_work:
        plan = engine.turn()
        seen += [groups for groups in [shared_of(plan)] if groups is not None] if plan else []
    assert engine.scheduler.counters.preemptions
    assert seen[0] == [([0, 1, 2], 2)] and ([0, 1], 2) in [group for groups in seen for group in groups]
    check_all(engine)
