"""Short plays of steps: who is granted how many tokens in which one, and when a sequence ends."""

import pytest

from quire.messages.plan import StepResult
from quire.messages.structured import StructuredOutputsParams, grammar_key
from tests.scheduler.engine import EOS, Engine, check_all

pytestmark = pytest.mark.plain


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


def test_a_sequence_with_a_logits_processor_does_not_chain():
    engine = Engine(depth=2)
    engine.add(prompt=3, max_tokens=3, logits_processors=[print])
    assert [engine.step() for _ in range(3)] == ["A3", "", "A1"]


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
