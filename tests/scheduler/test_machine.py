"""Random lives of the scheduler, checked after every step, in plain, overlapped and pipelined loops.

What a sequence says must be what it says alone, whatever its company, the order, the chunks, preemptions, prefix hits,
failures of others; and nothing may be left when all is over.
"""

import os
from contextlib import suppress
from math import ceil

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from quire.base.errors import RequestError
from quire.kvcache.retention import most_held
from quire.messages.params import SamplingParams
from quire.messages.plan import StepResult
from quire.messages.request import Request
from quire.messages.state import RECURRENT, GroupLayout, Layout, Retention, StateSpec
from quire.scheduler.limits import Limits
from tests.scheduler.engine import EOS, VOCAB, Engine

pytestmark = pytest.mark.plain

RULES = [
    StateSpec(8),
    StateSpec(9, Retention(window=2)),
    StateSpec(0, RECURRENT, 10),
    StateSpec(11, Retention(window=5)),
    StateSpec(12, Retention(window=4, sink=3)),
    StateSpec(13, Retention(chunk=6)),
]
PROMPTS = [[i % 7 for i in range(24)], [1] * 24, [i * i % 11 for i in range(24)]]
LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"


@st.composite
def layouts(draw):
    """One to three groups with pages of one to eight tokens, few of them."""
    rules = draw(st.lists(st.sampled_from(RULES), min_size=1, max_size=3, unique=True))
    sizes = draw(st.sampled_from([[1], [2], [3], [4], [5], [8], [2, 4], [4, 1, 2], [3, 2]]))
    longest = draw(st.integers(16, 36))
    spare = draw(st.sampled_from([0.0, 0.2, 0.5, 1.0, 3.0]))
    groups = []
    for i, spec in enumerate(rules):
        page_size = sizes[i % len(sizes)]
        pages = 1 + ceil((1 + spare) * most_held(spec.retention, longest, page_size))
        groups.append(GroupLayout(spec, 1, page_size, pages))
    return Layout(groups, longest + draw(st.sampled_from([0, 0, 8])))


def limits(chain):
    """Tight limits, so that everything collides."""
    return st.builds(
        Limits,
        max_num_seqs=st.integers(1, 6),
        max_num_batched_tokens=st.sampled_from([40, 12, 5, 3, 1]),
        max_preemptions=st.integers(1, 4),
        watermark=st.sampled_from([0.0, 0.1, 0.5]),
        policy=st.sampled_from(["fcfs", "priority", "lpm"]),
        prefix_caching=st.booleans(),
        chain=st.just(chain),
        look_past=st.integers(0, 4),
        max_skipped=st.integers(1, 8),
        shared_rows=st.integers(2, 4),
        shared_tokens=st.sampled_from([1, 4, 9]),
        checkpoint_tokens=st.sampled_from([2048, 6]),
        recorded_tokens=st.sampled_from([0, 0, 6]),
    )


params = st.builds(
    SamplingParams,
    n=st.sampled_from([1, 1, 1, 2, 3]),
    seed=st.integers(0, 1 << 40),
    max_tokens=st.sampled_from([12, 9, 6, 3, 2, 1]),
    min_tokens=st.sampled_from([0, 0, 3]),
    ignore_eos=st.booleans(),
    stop_token_ids=st.sampled_from([None, None, None, [3, 5], list(range(20))]),
    logprobs=st.sampled_from([None, 0]),
    prompt_logprobs=st.sampled_from([None, None, 0]),
    logits_processors=st.sampled_from([None, None, None, ["callable"]]),
)


requests = st.builds(
    Request,
    id=st.just(""),
    token_ids=st.builds(
        lambda prompt, length, tail: prompt[:length] + tail,
        st.sampled_from(PROMPTS),
        st.sampled_from([24, 17, 16, 12, 8, 5, 2, 1]),
        st.lists(st.integers(0, VOCAB - 1), max_size=3),
    ),
    params=params,
    eos_token_ids=st.just([EOS, 0]),
    priority=st.integers(0, 2),
    cache_salt=st.sampled_from(["", "", "tenant"]),
)


class Machine(RuleBasedStateMachine):
    """Adds, aborts, finishes and fails requests at random between the turns of an engine's loop."""

    depth = 1
    chain = True

    @initialize(data=st.data(), layout=layouts())
    def begin(self, data, layout):
        """A new engine."""
        chosen = data.draw(limits(self.chain))
        self.engine = Engine(layout, depth=self.depth, **{f: getattr(chosen, f) for f in chosen.__struct_fields__})

    @rule(requests=st.lists(requests, min_size=1, max_size=4))
    def add(self, requests):
        """Some requests arrive together."""
        for request in requests:
            with suppress(RequestError):
                self.engine.submit(msgspec.structs.replace(request, id=f"r{len(self.engine.requests)}"))

    @rule(turns=st.integers(1, 8))
    def turn(self, turns):
        """The loop goes round."""
        for _ in range(turns):
            self.engine.turn()

    @precondition(lambda self: self.engine.requests)
    @rule(data=st.data())
    def abort(self, data):
        """A client goes away, perhaps twice, perhaps after the end."""
        engine = self.engine
        name = data.draw(st.sampled_from(sorted(engine.requests)))
        for _ in range(data.draw(st.integers(1, 2))):
            engine.scheduler.abort(name)
        engine.silent |= {key for key, said in engine.heard.items() if key[0] == name and not said.finish_reason}
        engine.scheduler.check()

    @precondition(lambda self: self.engine.requests)
    @rule(data=st.data())
    def finish(self, data):
        """A front end has found a stop string."""
        engine = self.engine
        key = data.draw(st.sampled_from(sorted(engine.heard)))
        alive = key not in engine.silent and not engine.heard[key].finish_reason
        assert engine.scheduler.finish(*key, len(engine.heard[key].tokens)) == alive
        if alive:
            engine.silent.add(key)
        engine.scheduler.check()

    @precondition(lambda self: self.engine.scheduler.roster.alive)
    @rule(data=st.data())
    def poison(self, data):
        """What a request computes next is not finite."""
        self.engine.poisoned.add(data.draw(st.sampled_from(sorted(self.engine.scheduler.roster.alive))))

    @rule(step=st.sampled_from([None, 0, 1000]))
    def disturb(self, step):
        """Somebody empties the prefix cache, or a result comes that belongs to no plan in flight."""
        if step is None:
            self.engine.scheduler.reset_prefix_cache()
        else:
            assert self.engine.scheduler.commit(StepResult(step, [0], [0], [0])) == []
        self.engine.scheduler.check()

    def teardown(self):
        """Everything ends, everybody heard exactly what they should, nothing is left."""
        if not hasattr(self, "engine"):
            return
        engine = self.engine
        engine.poisoned.clear()
        engine.finish_all()
        for key, said in engine.heard.items():
            engine.check_said(key)
            assert (key in engine.silent) == (said.finish_reason is None)
            if said.finish_reason == "error":
                assert said.error
        counters = engine.scheduler.counters
        assert counters.alive == 0
        errors = sum(said.finish_reason == "error" for said in engine.heard.values())
        ends = sum(said.finish_reason in ("stop", "length") for said in engine.heard.values())
        assert counters.failed == errors
        assert counters.finished + counters.aborted == ends + len(engine.silent)


class Overlapped(Machine):
    """Two steps in flight."""

    depth = 2


class Pipelined(Machine):
    """Four stages, no chaining."""

    depth = 4
    chain = False


def dose(examples):
    """How many lives, of how many steps."""
    return settings(
        max_examples=examples * (100 if LONG else 1), stateful_step_count=30, suppress_health_check=list(HealthCheck)
    )


TestPlain = Machine.TestCase
TestPlain.settings = dose(60)
TestOverlapped = Overlapped.TestCase
TestOverlapped.settings = dose(100)
TestPipelined = Pipelined.TestCase
TestPipelined.settings = dose(60)
