"""Simulated lives of a whole server, each from its seed. `python -m tests.simulation SEED` shows and shrinks one."""

import hashlib
import logging
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Literal
from unittest import mock

import msgspec
import pytest

from quire.engine.async_llm import AsyncLLM
from quire.engine.router import Router
from quire.engine.streams import Stream
from quire.scheduler.planner import Planner
from quire.scheduler.resources.pages import Pages
from quire.scheduler.roster import Roster
from quire.server.core_supervisor import CoreSupervisor
from tests.simulation.scenario import FORK, POINTS, SEAMS, Ask, Fault, Scenario, generate
from tests.simulation.shrink import failure, shrunk, story
from tests.simulation.world import live

pytestmark = pytest.mark.plain

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
LIVES, EACH = (100_000, 1000) if LONG else (1000, 125)
OUTCOMES = {"served", "left", "broken", "aborted", "unavailable", "failed"}


@pytest.fixture(autouse=True)
def quiet():
    """Engines that die say so in the log, and here they do it all the time."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("first", range(0, LIVES, EACH))
def test_nothing_is_lost(first: int) -> None:
    outcomes: Counter[str | None] = Counter()
    for seed in range(first, first + EACH):
        try:
            world = live(generate(seed))
        except Exception as error:
            pytest.fail(f"python -m tests.simulation {seed}\n{error}\n{story(generate(seed))}")
        outcomes.update(seen.outcome for seen in world.seen.values())
    assert set(outcomes) >= OUTCOMES, f"too little has happened to mean anything: {outcomes}"


CROWD = Scenario(
    seed=1,
    events=tuple(
        Ask(at=0.2 + n / 100, id=f"r{n}", front=n % 2, prompt=(n % 2, *range(8)), seed=n, max_tokens=6, n=1 + n % 2)
        for n in range(6)
    ),
    fronts=2,
    depth=2,
    pages=14,
    max_num_batched_tokens=8,
    load_s=0.1,
)
"""Six requests that share pages and have too few of them."""


@pytest.mark.parametrize(
    ("point", "kind"), [*((point, "raise at") for point in (*POINTS, *SEAMS)), *((point, "die at") for point in POINTS)]
)
def test_every_passage_of_a_point_fails_once(point: str, kind: Literal["raise at", "die at"]) -> None:
    """SQLite's way: the first time, the second, ... until there is no time left at which it could."""
    for which in count():
        fault = Fault(0.15, kind, which, point=point)
        world = live(msgspec.structs.replace(CROWD, events=(fault, *CROWD.events)))
        if not world.points.broken:
            break
    # A core loads once unless it dies.
    assert which >= (0 if point == "core.load" else 3), "the point is hardly passed"


def test_a_fork_that_fails_is_tried_again() -> None:
    faults = (Fault(0.25, "raise at", 0, point=FORK), Fault(0.26, "kill core"))
    world = live(msgspec.structs.replace(CROWD, events=(*faults, *CROWD.events)))
    assert world.points.broken == {FORK: 1}
    assert {seen.outcome for seen in world.seen.values()} <= {"served", "unavailable"}


def digest(seeds: range) -> str:
    """What has happened in these lives, to the last word."""
    print_ = hashlib.sha256()
    for seed in seeds:
        print_.update("\n".join(live(generate(seed)).log).encode())
    return print_.hexdigest()


def test_a_seed_says_everything() -> None:
    program = "import logging; logging.disable(); from tests.simulation import test_simulation as t; "
    program += "print(t.digest(range(40, 60)))"
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert said == {digest(range(40, 60)).encode() + b"\n"}


def nothing(*args: object, **named: object) -> None:
    """Instead of something that matters."""


def lost_page(release: Callable) -> Callable:
    """A sequence gives back all its pages but one."""

    def released(self: Pages, seq: object) -> None:
        if seq in self.holders and seq.tables[0].pages and seq.params.n == 3:
            seq.tables[0].pages.pop()
        release(self, seq)

    return released


DEFECTS = {
    "what the dead have asked goes on": (Router, "gone", nothing),
    "a client that leaves is not told to the engine": (
        AsyncLLM,
        "_send",
        lambda self, message: (
            None if type(message).__name__ == "Abort" else self._client and self._client.send(message)
        ),
    ),
    "what was read is made again": (Stream, "taken", False),
    "a fault of one is everybody's": (Roster, "fail", lambda self, seq, told=True: exec("raise")),
    "a hung engine is left alone": (CoreSupervisor, "_end_hung", None),
    "a page is lost": (Pages, "release", lost_page(Pages.release)),
    "nobody is preempted": (Planner, "_make_room", lambda self, seq: False),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_defects_are_found(defect: str) -> None:
    owner, name, instead = DEFECTS[defect]
    with mock.patch.object(owner, name, instead):
        found = next((seed for seed in range(300) if failure(generate(seed)) is not None), None)
        assert found is not None


def test_failures_become_small() -> None:
    with mock.patch.object(Router, "gone", nothing):
        seed = next(seed for seed in range(300) if failure(generate(seed)) is not None)
        scenario = generate(seed)
        small = shrunk(scenario, failure(scenario))
        assert len(small.events) <= 3 < len(scenario.events)
        assert "N5" in story(small)
