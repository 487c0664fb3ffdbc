"""Recurrent state: where steps end, what is kept for others, and how much of a conversation is found again."""

import random

import pytest

from quire.messages.state import RECURRENT, GroupLayout, Layout, StateSpec
from tests.scheduler.engine import VOCAB, Engine, check_all

pytestmark = pytest.mark.plain

FULL, STATE = StateSpec(8), StateSpec(0, RECURRENT, 1000)


def hybrid(page_size=4, pages=200, states=40, longest=600):
    """Full attention beside recurrent state."""
    return Layout(
        [GroupLayout(FULL, 1, page_size, pages), GroupLayout(STATE, 3, page_size, states)], max_model_len=longest
    )


def words(rng, count):
    return [rng.randrange(VOCAB - 1) for _ in range(count)]


def hits(engine):
    return engine.scheduler.counters.prefix_hits


@pytest.mark.parametrize("groups", [slice(0, 2), slice(1, 2)], ids=["hybrid", "recurrent only"])
def test_the_last_full_page_of_a_prompt_ends_a_step(groups):
    engine = Engine(Layout(hybrid().groups[groups], 600), max_num_batched_tokens=64)
    engine.add(prompt=11, max_tokens=3)
    assert [engine.step() for _ in range(4)] == ["A8", "A3", "A1", "A1"]
    engine.add(prompt=[*engine.requests["A"].token_ids, 7, 8], max_tokens=2)
    assert engine.step() == "B4"
    engine.step()
    assert hits(engine) == 8
    engine.finish_all()


def test_steps_end_at_pages_rather_than_within():
    engine = Engine(hybrid(), max_num_batched_tokens=7)
    engine.add(prompt=21, max_tokens=2)
    assert [engine.step() for _ in range(7)] == ["A4", "A4", "A4", "A4", "A4", "A1", "A1"]


def test_a_budget_smaller_than_a_page_gets_through():
    engine = Engine(hybrid(page_size=8), max_num_batched_tokens=3)
    engine.add(prompt=21, max_tokens=2)
    assert [engine.step() for _ in range(9)] == ["A3", "A3", "A2", "A3", "A3", "A2", "A3", "A2", "A1"]
    engine.finish_all()
    engine.check_said(("A", 0))


def test_without_the_prefix_cache_steps_end_anywhere():
    engine = Engine(hybrid(), max_num_batched_tokens=64, prefix_caching=False)
    engine.add(prompt=11, max_tokens=2)
    assert engine.step() == "A11"


@pytest.mark.parametrize("depth", [1, 2])
def test_a_conversation_is_found_again(depth):
    """Eight turns of three conversations: at least nine tenths of what two turns share is read from pages."""
    rng = random.Random(5)
    engine = Engine(hybrid(page_size=16, states=40), depth=depth, max_num_batched_tokens=64)
    asked = shared = 0
    histories = [words(rng, 60 + 7 * i) for i in range(3)]
    for turn in range(8):
        for history in histories:
            if turn:
                shared += len(history)
            history += words(rng, rng.randint(5, 20))
            asked += len(history)
        names = [engine.add(prompt=list(history), max_tokens=rng.randint(8, 30)) for history in histories]
        engine.finish_all()
        for name, history in zip(names, histories, strict=True):
            engine.check_said((name, 0))
            history += engine.heard[name, 0].tokens
    assert engine.scheduler.counters.prefix_queries == asked
    # Of the answers the last token was never computed, and pages of 16 tokens are found whole or not at all.
    assert shared * 0.9 <= hits(engine) < asked


def test_what_several_prompts_begin_with_is_kept_from_the_second_on():
    rng = random.Random(6)
    engine = Engine(hybrid(), max_num_batched_tokens=256)
    head = words(rng, 42)
    found = []
    for _ in range(4):
        engine.add(prompt=head + words(rng, 9), max_tokens=2)
        before = hits(engine)
        engine.finish_all()
        found.append(hits(engine) - before)
    # The second shows where the two part; from there on a state is kept.
    assert found == [0, 0, 40, 40]


def test_a_crowd_with_one_beginning_computes_it_twice():
    rng = random.Random(9)
    engine = Engine(hybrid(states=60), max_num_batched_tokens=64, depth=2)
    head = words(rng, 42)
    for _ in range(8):
        engine.add(prompt=head + words(rng, 5), max_tokens=3)
    engine.finish_all()
    assert hits(engine) == 6 * 40


def test_where_all_is_recurrent_a_crowd_with_one_beginning_need_not_wait():
    rng = random.Random(9)
    engine = Engine(Layout(hybrid(states=60).groups[1:], 600), max_num_batched_tokens=512)
    head = words(rng, 42)
    for _ in range(8):
        engine.add(prompt=head + words(rng, 5), max_tokens=3)
    engine.turn()
    assert len(engine.scheduler.roster.running) == 8
    engine.finish_all()


def test_a_long_text_is_kept_at_intervals():
    rng = random.Random(7)
    engine = Engine(hybrid(), max_num_batched_tokens=300, checkpoint_tokens=64)
    text = words(rng, 297)
    engine.add(prompt=text, max_tokens=2)
    engine.finish_all()
    index = engine.scheduler.roster.pages.groups[1].index
    # At 64, 128, 192 and 256 tokens and at the last full page.
    assert len(index.pages) == 5
    engine.add(prompt=[*text[:200], *words(rng, 50)], max_tokens=2)
    engine.finish_all()
    assert hits(engine) == 192


def test_a_sequence_holds_two_states():
    engine = Engine(hybrid(), max_num_batched_tokens=64)
    engine.add(prompt=30, max_tokens=40)
    held = set()
    while engine.scheduler.has_work:
        engine.turn()
        held |= {len(seq.tables[1].held()) for seq in engine.scheduler.roster.running}
    assert held == {1, 2}
    # The ends of the prompt and of the turn.
    assert len(engine.scheduler.roster.pages.groups[1].index.pages) == 2


def test_few_states_make_sequences_wait_and_start_again():
    rng = random.Random(8)
    engine = Engine(hybrid(pages=30, states=6), max_num_batched_tokens=32, depth=2)
    for _ in range(12):
        engine.add(prompt=words(rng, rng.randint(5, 30)), max_tokens=20)
    check_all(engine)
    assert engine.scheduler.counters.preemptions > 0


def test_siblings_begin_with_the_state_of_the_first():
    engine = Engine(hybrid(), max_num_batched_tokens=64, prefix_caching=False)
    engine.add(prompt=11, n=3, max_tokens=4)
    assert [engine.step() for _ in range(2)] == ["A8", "A3 A.1:3 A.2:3"]
    check_all(engine)
