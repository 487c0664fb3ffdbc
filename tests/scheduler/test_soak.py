"""Crowded random runs with a fixed seed: far more preemptions, hits and failures per second than shrinkable lives have.

Half of the runs are recorded, and their event logs must replay with the same plans.
"""

import os
import random

import pytest

from quire.kvcache.retention import most_held
from quire.messages.params import SamplingParams
from quire.messages.request import Request
from quire.messages.state import RECURRENT, GroupLayout, Layout, Retention, StateSpec
from quire.scheduler.events import RecordedScheduler, replay
from quire.scheduler.limits import Limits
from tests.scheduler.engine import EOS, VOCAB, Engine

pytestmark = pytest.mark.plain

RULES = [
    StateSpec(8),
    StateSpec(0, RECURRENT, 9),
    StateSpec(10, Retention(window=7)),
    StateSpec(11, Retention(window=5, sink=2)),
    StateSpec(12, Retention(chunk=6)),
]
LOOPS = {"plain": (1, True), "overlapped": (2, True), "pipelined": (4, False)}
RUNS = 400 if os.environ.get("HYPOTHESIS_PROFILE") == "long" else 24
PROMPTS = [[i % 5 for i in range(30)], [i * i % 13 for i in range(30)]]
PEOPLE = 24


def crowded_layout(rng):
    """Room for one longest sequence and a little more."""
    size = rng.choice([1, 2, 3, 4, 8])
    rules = rng.sample(RULES, rng.randint(1, 3))
    pages = [1 + int(most_held(rule.retention, 40, size) * rng.choice([1.2, 1.6, 2.5])) for rule in rules]
    groups = [GroupLayout(rule, 1, size, n) for rule, n in zip(rules, pages, strict=True)]
    return Layout(groups, 40)


def crowded_limits(rng, chain):
    """Little of everything."""
    return Limits(
        max_num_seqs=rng.randint(2, 8),
        max_num_batched_tokens=rng.choice([6, 16, 64]),
        max_preemptions=rng.randint(1, 3),
        watermark=rng.choice([0.0, 0.05]),
        policy=rng.choice(["fcfs", "priority", "lpm"]),
        prefix_caching=rng.random() < 0.7,
        checkpoint_tokens=rng.choice([4, 2048]),
        recorded_tokens=rng.choice([0, 0, 8]),
        chain=chain,
    )


def random_request(rng, number):
    """One of many; they begin alike."""
    prompt = rng.choice(PROMPTS)[: rng.randint(1, 26)] + [rng.randrange(VOCAB) for _ in range(rng.randint(0, 2))]
    params = SamplingParams(
        n=rng.choice([1, 1, 1, 3]),
        seed=rng.randrange(1 << 40),
        max_tokens=rng.randint(1, 12),
        min_tokens=rng.choice([0, 4]),
        stop_token_ids=rng.choice([None, None, [3, 7]]),
        logprobs=rng.choice([None, 0]),
        prompt_logprobs=rng.choice([None, None, None, 0]),
    )
    return Request(
        id=f"r{number}",
        token_ids=prompt,
        params=params,
        eos_token_ids=[EOS],
        priority=rng.randint(0, 2),
        cache_salt=rng.choice(["", "", "other"]),
    )


def live(engine, rng):
    """Requests come and go until all is over."""
    waiting = [random_request(rng, number) for number in range(PEOPLE)]
    while waiting or engine.scheduler.has_work:
        if waiting and rng.random() < 0.6:
            engine.submit(waiting.pop())
        alive = sorted(engine.scheduler.roster.alive)
        if alive and rng.random() < 0.04:
            engine.poisoned.add(rng.choice(alive))
        if alive and rng.random() < 0.03:
            name = rng.choice(alive)
            engine.silent |= {k for k, said in engine.heard.items() if k[0] == name and not said.finish_reason}
            engine.scheduler.abort(name)
        engine.turn()
        assert engine.device.steps < 60 * PEOPLE, "no end in sight"
    for key in engine.heard:
        engine.check_said(key)


@pytest.mark.parametrize("loop", LOOPS)
def test_crowds(loop, tmp_path):
    depth, chain = LOOPS[loop]
    total = {"preemptions": 0, "restarted": 0, "prefix_hits": 0, "failed": 0}
    for run in range(RUNS):
        rng = random.Random(f"{loop} {run}")
        limits, layout, log = crowded_limits(rng, chain), crowded_layout(rng), str(tmp_path / f"{run}.jsonl")
        recorded = RecordedScheduler(limits, layout, log, seed=run) if run % 2 else None
        names = limits.__struct_fields__
        engine = Engine(layout, depth=depth, scheduler=recorded, **{name: getattr(limits, name) for name in names})
        live(engine, rng)
        counters = engine.scheduler.counters
        for name in total:
            total[name] += getattr(counters, name)
        if recorded:
            again = replay(log)
            again.check()
            assert again.counters == counters
    assert all(total.values()), f"the crowd was too thin to mean anything: {total}"


def test_a_log_that_was_changed_does_not_replay(tmp_path):
    log = tmp_path / "events.jsonl"
    engine = Engine(
        scheduler=RecordedScheduler(Limits(max_num_seqs=8, max_num_batched_tokens=16), Engine().layout, str(log))
    )
    engine.add(prompt=20, max_tokens=3)
    engine.finish_all()
    replay(str(log))
    log.write_bytes(log.read_bytes().replace(b'"max_num_batched_tokens":16', b'"max_num_batched_tokens":15'))
    with pytest.raises(AssertionError, match="line 4: the plan differs"):
        replay(str(log))


def test_refusals_and_callables_are_recorded_too(tmp_path):
    log = str(tmp_path / "events.jsonl")
    engine = Engine(
        scheduler=RecordedScheduler(Limits(max_num_seqs=8, max_num_batched_tokens=16), Engine().layout, log), depth=2
    )
    with pytest.raises(Exception, match="maximum context"):
        engine.add(prompt=99)
    engine.add(prompt=3, logits_processors=[print])
    engine.finish_all()
    assert replay(log).counters == engine.scheduler.counters


def test_ends_and_resets_are_recorded_too(tmp_path):
    log = str(tmp_path / "events.jsonl")
    engine = Engine(
        scheduler=RecordedScheduler(Limits(max_num_seqs=8, max_num_batched_tokens=16), Engine().layout, log)
    )
    name = engine.add(prompt=8, max_tokens=20)
    engine.turn()
    assert engine.scheduler.finish(name, 0, 1)
    engine.silent.add((name, 0))
    engine.finish_all()

    def findable() -> int:
        return sum(len(group.index.pages) for group in replay(log).roster.pages.groups)

    assert findable() > 0
    engine.scheduler.reset_prefix_cache()
    assert findable() == 0
    assert replay(log).counters == engine.scheduler.counters
