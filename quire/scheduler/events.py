"""The event log: everything that happens to a scheduler, as JSON lines, and its exact replay.

The first line holds what the scheduler was made from, with the hash key and the seed; then one line per event and per
plan. A run that went wrong somewhere replays on any machine, without a model. Log-probabilities are left out: no
decision depends on them. `build.make` uses it when the setting `event_log` names a file.
"""

import secrets
from contextlib import suppress
from pathlib import Path

import msgspec

from quire.base.errors import RequestError
from quire.messages.plan import StepPlan, StepResult
from quire.messages.request import Request
from quire.messages.state import Layout
from quire.messages.wire import Delta
from quire.scheduler.limits import Limits
from quire.scheduler.scheduler import Scheduler


class Start(msgspec.Struct, tag=True):
    """The first line."""

    limits: Limits
    layout: Layout
    hash_key: bytes
    seed: int


class Add(msgspec.Struct, tag=True):
    """`add` was called, and may have refused."""

    request: Request
    now: float


class Abort(msgspec.Struct, tag=True):
    """`abort` was called."""

    id: str


class Finish(msgspec.Struct, tag=True):
    """`finish` was called."""

    id: str
    index: int
    tokens: int


class Reset(msgspec.Struct, tag=True):
    """`reset_prefix_cache` was called."""


class Hold(msgspec.Struct, tag=True):
    """`hold` was called."""

    grammar: str


class GrammarReady(msgspec.Struct, tag=True):
    """`ready` was called."""

    grammar: str


class Tick(msgspec.Struct, tag=True):
    """`plan` was called."""

    now: float


class Planned(msgspec.Struct, tag=True):
    """What `plan` gave."""

    plan: StepPlan | None


class Commit(msgspec.Struct, tag=True):
    """`commit` was called."""

    result: StepResult
    seconds: float | None = None


Event = Start | Add | Abort | Finish | Reset | Hold | GrammarReady | Tick | Planned | Commit


class RecordedScheduler(Scheduler):
    """A scheduler that writes down each event before it acts on it, so that the last line of a crash is its cause.

    Args:
        path: the log; an old one is replaced. It is opened for each line: this is for finding faults, not for speed.
    """

    def __init__(self, limits: Limits, layout: Layout, path: str, *, seed: int = 0) -> None:
        hash_key = secrets.token_bytes(32)
        super().__init__(limits, layout, hash_key=hash_key, seed=seed)
        self._path = Path(path)
        self._path.write_bytes(b"")
        self._write(Start(limits, layout, hash_key, seed))

    def add(self, request: Request, now: float) -> None:
        """Recorded."""
        self._write(Add(_plain(request), now))
        super().add(request, now)

    def plan(self, now: float) -> StepPlan | None:
        """Recorded, with the plan."""
        self._write(Tick(now))
        plan = super().plan(now)
        # Callables in a plan's parameters cannot be written; their rows replay from the request.
        self._write(Planned(plan and _comparable(plan)))
        return plan

    def commit(self, result: StepResult, seconds: float | None = None) -> list[Delta]:
        """Recorded, without log-probabilities and vectors."""
        self._write(Commit(msgspec.structs.replace(result, logprobs={}, prompt_logprobs={}, vectors={}), seconds))
        return super().commit(result, seconds)

    def abort(self, id: str) -> None:
        """Recorded."""
        self._write(Abort(id))
        super().abort(id)

    def finish(self, id: str, index: int, tokens: int) -> bool:
        """Recorded."""
        self._write(Finish(id, index, tokens))
        return super().finish(id, index, tokens)

    def hold(self, grammar: str) -> None:
        """Recorded."""
        self._write(Hold(grammar))
        super().hold(grammar)

    def ready(self, grammar: str) -> None:
        """Recorded."""
        self._write(GrammarReady(grammar))
        super().ready(grammar)

    def reset_prefix_cache(self) -> None:
        """Recorded."""
        self._write(Reset())
        super().reset_prefix_cache()

    def _write(self, event: Event) -> None:
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(event) + b"\n")


def replay(path: str) -> Scheduler:
    """Run a recorded log again and return the scheduler as it stood at the end.

    Raises:
        AssertionError: at the first plan that differs from the recorded one, with the number of its line.
    """
    decoder = msgspec.json.Decoder(Event)
    lines = Path(path).read_bytes().splitlines()
    start = decoder.decode(lines[0])
    assert isinstance(start, Start), "line 1 is not the start of an event log"
    scheduler = Scheduler(start.limits, start.layout, hash_key=start.hash_key, seed=start.seed)
    plan: StepPlan | None = None
    for number, line in enumerate(lines[1:], 2):
        event = decoder.decode(line)
        if isinstance(event, Tick):
            plan = scheduler.plan(event.now)
        elif isinstance(event, Planned):
            assert (plan and _comparable(plan)) == event.plan, f"line {number}: the plan differs"
        else:
            _apply(scheduler, event)
    return scheduler


def _apply(scheduler: Scheduler, event: Event) -> None:
    match event:
        case Add():
            with suppress(RequestError):  # the recorded run refused it too
                scheduler.add(event.request, event.now)
        case Commit():
            scheduler.commit(event.result, event.seconds)
        case Abort():
            scheduler.abort(event.id)
        case Finish():
            scheduler.finish(event.id, event.index, event.tokens)
        case Hold():
            scheduler.hold(event.grammar)
        case GrammarReady():
            scheduler.ready(event.grammar)
        case Reset():
            scheduler.reset_prefix_cache()
        case _:
            raise AssertionError(f"{type(event).__name__} in the middle of an event log")


def _plain(request: Request) -> Request:
    """The request without callables: their names stand in, so that the sequence still does not chain."""
    processors = request.params.logits_processors
    if not processors:
        return request
    params = msgspec.structs.replace(request.params, logits_processors=[repr(p) for p in processors])
    return msgspec.structs.replace(request, params=params)


def _comparable(plan: StepPlan) -> StepPlan:
    new = [
        msgspec.structs.replace(n, params=msgspec.structs.replace(n.params, logits_processors=None)) for n in plan.new
    ]
    return msgspec.structs.replace(plan, new=new)
