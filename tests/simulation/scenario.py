"""What happens in a simulated life, as plain data: made from a seed, written as JSON, shrunk by leaving things out."""

import random
from typing import Literal

import msgspec

from tests.scheduler.engine import EOS, VOCAB

DEADLY, STICKY, BROKEN, SPOILED, POISONOUS = 47, 46, 45, 44, 43
"""Prompts that hold these tokens kill the core, hang it, make the ranks raise, bring NaN, make the scheduler raise."""
HARMFUL = (DEADLY, STICKY, BROKEN)
BEGINNINGS = [[i % 7 for i in range(20)], [1] * 20, [i * i % 11 for i in range(20)]]
POINTS = ("core.step", "core.result", "core.send", "core.load")
"""Places where a core can die, or raise: before a plan is run, before its result is read, before a frame is sent, while
it loads."""
FORK = "fork"
"""Where the supervisor starts a core, and the system may have no process left."""
SEAMS = ("scheduler.add", "scheduler.offer", "scheduler.take", "scheduler.register", "text")
"""Places where an exception belongs to one request."""


class Ask(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """A client asks at `at` seconds.

    Attributes:
        read_s: it takes so long for each output that it reads.
        leave_after: it hangs up after so many tokens; None reads to the end.
        leave_s: it hangs up after so many seconds.
        abort_s: somebody ends its request by id after so many seconds.
    """

    at: float
    id: str
    front: int
    prompt: tuple[int, ...]
    seed: int = 0
    n: int = 1
    max_tokens: int = 8
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    prompt_logprobs: int | None = None
    salt: str = ""
    priority: int = 0
    read_s: float = 0.0
    leave_after: int | None = None
    leave_s: float | None = None
    abort_s: float | None = None


Kind = Literal[
    *("kill core", "hang core", "pause core", "kill front", "garbage", "reset cache", "die at", "raise at", "slow"),
]


class Fault(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Something breaks at `at` seconds.

    Attributes:
        which: a front end; or the how-manieth time that `point` is passed from then on.
        seconds: for those that last.
        point: one of POINTS or SEAMS.
    """

    at: float
    kind: Kind
    which: int = 0
    seconds: float = 0.0
    point: str = ""


class Scenario(msgspec.Struct, frozen=True, omit_defaults=True):
    """One life.

    Attributes:
        seed: of network delays, durations of steps, and where messages are cut by a death.
        rule: retention of a second group of pages: None is none, else its window.
        delay_s: a message takes about so long.
    """

    seed: int
    events: tuple[Ask | Fault, ...]
    fronts: int = 1
    depth: int = 1
    pages: int = 24
    page_size: int = 4
    window: int | None = None
    max_num_seqs: int = 4
    max_num_batched_tokens: int = 16
    policy: str = "fcfs"
    prefix_caching: bool = True
    max_preemptions: int = 3
    delay_s: float = 0.001
    step_s: float = 0.005
    load_s: float = 0.5


def generate(seed: int) -> Scenario:
    """The scenario of a seed."""
    rng = random.Random(seed)
    fronts = rng.choice([1, 1, 2, 3])
    length = rng.choice([0.2, 1.0, 5.0])
    asks = [_ask(rng, number, fronts, length) for number in range(rng.randint(1, 24))]
    load_s = rng.choice([0.1, 2.0])
    # Most things break while somebody is being served.
    moments = [max(ask.at, load_s) for ask in asks]
    faults = [_fault(rng, fronts, rng.choice(moments)) for _ in range(rng.choice([0, 1, 1, 2, 3, 4]))]
    return Scenario(
        seed=seed,
        events=tuple(sorted([*asks, *faults], key=lambda event: event.at)),
        fronts=fronts,
        depth=rng.choice([1, 2]),
        pages=rng.choice([14, 20, 40]),
        page_size=rng.choice([3, 4, 8]),
        window=rng.choice([None, None, None, 2, 7]),
        max_num_seqs=rng.randint(1, 6),
        max_num_batched_tokens=rng.choice([3, 8, 16, 64]),
        policy=rng.choice(["fcfs", "fcfs", "priority", "lpm"]),
        prefix_caching=rng.random() < 0.8,
        max_preemptions=rng.randint(1, 3),
        delay_s=rng.choice([0.0, 0.001, 0.02]),
        step_s=rng.choice([0.001, 0.01, 0.01, 0.4]),
        load_s=load_s,
    )


def _ask(rng: random.Random, number: int, fronts: int, length: float) -> Ask:
    prompt = rng.choice(BEGINNINGS)[: rng.randint(1, 20)] + [rng.randrange(40) for _ in range(rng.randint(0, 2))]
    if rng.random() < 0.06:
        # In front, so that nobody shares pages with it.
        prompt = [rng.choice([*HARMFUL, SPOILED, POISONOUS]), number % 40, *prompt]
    return Ask(
        at=rng.random() * length,
        id=f"r{number}",
        front=rng.randrange(fronts),
        prompt=tuple(prompt),
        seed=rng.randrange(1 << 40),
        n=rng.choice([1, 1, 1, 1, 2, 3]),
        max_tokens=rng.choice([1, 2, 5, 9, 16]),
        min_tokens=rng.choice([0, 0, 0, 1]),
        ignore_eos=rng.random() < 0.5,
        stop=rng.choice([(), (), (), ("1", "0/"), ("$", "%&")]),
        stop_token_ids=rng.choice([(), (), (), (3, 5, 9)]),
        prompt_logprobs=rng.choice([None, None, None, None, 0]),
        salt=rng.choice(["", "", "", "tenant"]),
        priority=rng.randrange(3),
        read_s=rng.choice([0.0, 0.0, 0.0, 0.05]),
        leave_after=rng.choice([None, None, None, None, 1, 4]),
        leave_s=rng.choice([None] * 6 + [rng.random() * 0.5]),
        abort_s=rng.choice([None] * 12 + [rng.random() * 0.2]),
    )


def _fault(rng: random.Random, fronts: int, moment: float) -> Fault:
    at = moment + rng.expovariate(1) * rng.choice([0.003, 0.1, 1.0])
    kind = rng.choice(Kind.__args__)
    point = ""
    if kind == "die at":
        point = rng.choice(POINTS)
    elif kind == "raise at":
        point = rng.choice([*POINTS, *SEAMS, *SEAMS, FORK])
    which = rng.randrange(fronts) if kind == "kill front" else rng.randint(0, 20)
    return Fault(at, kind, which, rng.choice([0.01, 0.3, 5.0, 12.0]), point)


assert max(DEADLY, EOS) < VOCAB
