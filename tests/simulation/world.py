"""A whole simulated server: the real supervisor of engines, cores, front ends and their clients, in one thread."""

import asyncio
import random
from collections.abc import Collection
from contextlib import aclosing, suppress
from unittest import mock

from quire.base.errors import EngineDeadError, EngineError, RequestError
from quire.engine.completion import Completion
from quire.engine.pulse import Pulse
from quire.messages.control import CrashReport, EngineDown, EngineUp, FrontGone
from quire.messages.params import RequestOutputKind
from quire.messages.wire import Delta, EngineFacts, ResetPrefixCache
from quire.server.core_supervisor import CoreSupervisor, StallLimits
from tests.simulation import history
from tests.simulation.core import SimulatedCore
from tests.simulation.faults import BrokeError, Died, Points
from tests.simulation.front import SimulatedFront
from tests.simulation.history import SERVED, Seen
from tests.simulation.network import Network
from tests.simulation.scenario import FORK, SEAMS, Ask, Fault, Scenario

PATIENCE = StallLimits(serving_s=5.0, loading_s=30.0)
RESPAWN_S = 0.2
LONGEST_S = 2000.0
"""Nobody waits longer than this for an outcome, whatever happens: back-off after ten deaths is nine minutes."""
SETTLE_S = 2.0
GIVEN_UP_S = 3.0
LOOK_S = 0.05


class World:
    """Lives through one scenario.

    Attributes:
        seen: what each client has seen.
        log: what has happened, for whoever looks for the cause of a failure.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.loop = asyncio.get_running_loop()
        self.rng = random.Random(scenario.seed)
        self.network = Network(self.rng, scenario.delay_s)
        self.points = Points()
        self.pulse = Pulse(clock=self.loop.time)
        self.core_supervisor = CoreSupervisor(self._start_core, self.pulse, PATIENCE, self._tell_all)
        self.fronts: list[SimulatedFront | None] = []
        self.seen: dict[str, Seen] = {}
        self.log: list[str] = []
        self.facts: EngineFacts | None = None
        self._first = asyncio.Event()
        self._moves_since = 0.0
        self._unlucky: set[str] = set()
        self._reports: list[CrashReport] = []
        self._born = 0
        self._cores: list[SimulatedCore] = []
        self._unready_since: dict[str, float] = {}

    async def live(self) -> None:
        """All that the scenario says, until nothing is left to happen; then see whether anything is left over."""
        loop = self.loop
        self.fronts = [self._bear() for _ in range(self.scenario.fronts)]
        keeping = loop.create_task(self.core_supervisor.keep())
        looking = loop.create_task(self._look())
        clients = [loop.create_task(self._happen(event)) for event in self.scenario.events]
        try:
            everything = asyncio.ensure_future(asyncio.wait(clients, timeout=LONGEST_S))
            await asyncio.wait([everything, keeping, looking], return_when=asyncio.FIRST_COMPLETED)
            for task in (keeping, looking):
                if task.done():
                    task.result()
            done, late = await everything
            assert not late, f"N1: for ever without outcome: {[s.ask.id for s in self.seen.values() if not s.outcome]}"
            for task in done:
                task.result()
            await self._settle()
        finally:
            for task in (keeping, looking, *clients):
                task.cancel()
            for front in self.fronts:
                if front is not None:
                    front.die()
            if self._cores:
                self._cores[-1].kill()
            await asyncio.sleep(1)

    def ready(self, facts: EngineFacts) -> None:
        """An engine serves."""
        self.facts = facts
        self._first.set()

    def note(self, *words: object) -> None:
        """Write into the log."""
        self.log.append(f"{self.loop.time():10.4f}  {' '.join(map(str, words))}")

    def check(self) -> None:
        """What clients have seen is what they may see."""
        failed = [seen for seen in self.seen.values() if "error" in seen.ends.values() or seen.outcome == "failed"]
        hurt = [seen for seen in failed if not history.explained(seen) and seen.ask.id not in self._unlucky]
        assert len(hurt) <= sum(self.points.broken.get(seam, 0) for seam in SEAMS), "one fault has hurt two requests"
        for seen in self.seen.values():
            history.check(self.scenario, seen, excused=seen in hurt or seen.ask.id in self._unlucky)

    def report(self, origin: SimulatedFront, report: CrashReport) -> None:
        """A front end knows something of a request; the others learn it."""
        self.note(origin.name, "reports", report)
        self._reports.append(report)
        for front in self.fronts:
            if front is not None and front is not origin:
                front.tell(report)

    async def _start_core(self, number: int) -> SimulatedCore:
        try:
            self.points.at(FORK)
        except BrokeError as error:
            raise BlockingIOError(11, "Resource temporarily unavailable") from error
        self.note("core", number, "starts")
        address = f"core-{number}"
        port = self.network.listen(address)
        core = SimulatedCore(address, port, self.pulse, self.scenario, self.points)
        core.on_begin = lambda request_id: self._begun(number, request_id)
        self._cores.append(core)
        return core

    def _begun(self, core: int, request_id: str) -> None:
        seen = self.seen[request_id]
        seen.cores.append((core, seen.read))

    def _tell_all(self, news: EngineUp | EngineDown) -> None:
        self.note("supervisor:", news)
        if isinstance(news, EngineDown) and not self._cores[-1].harmed:
            # Nobody can know that it was not the request on trial.
            self._unlucky.add(news.culprit)
        for front in self.fronts:
            if front is not None:
                front.tell(news)

    def _bear(self) -> SimulatedFront:
        front = SimulatedFront(self, f"front-{self._born}")
        self._born += 1
        if self.core_supervisor.news is not None:
            front.tell(self.core_supervisor.news)
        for report in self._reports:
            front.tell(report)
        return front

    async def _happen(self, event: Ask | Fault) -> None:
        await asyncio.sleep(event.at)
        if isinstance(event, Ask):
            await self._ask(event)
        else:
            # A first engine that cannot start ends the server, which is another story.
            await self._first.wait()
            self.note("fault:", event)
            await self._break(event)

    async def _ask(self, ask: Ask) -> None:
        seen = self.seen[ask.id] = Seen(ask)
        front = self.fronts[ask.front]
        if front is None:
            seen.outcome = "broken"
            return
        task = self.loop.create_task(self._read(front, seen))
        front.clients[task] = None
        if ask.leave_s is not None:
            self.loop.call_later(ask.leave_s, task.cancel)
        if ask.abort_s is not None:
            self.loop.call_later(ask.abort_s, lambda: self.loop.create_task(front.engine.abort(ask.id)))
        with suppress(asyncio.CancelledError):
            await task
        front.clients.pop(task, None)
        seen.ended_at = self.loop.time()
        if seen.outcome is None:
            seen.outcome = "left" if front in self.fronts else "broken"
        self.note(ask.id, seen.outcome, seen.read, seen.ends, seen.error)

    async def _read(self, front: SimulatedFront, seen: Seen) -> None:
        ask = seen.ask
        await front.known.wait()  # until then connections wait
        params = history.params(ask)
        params.output_kind = RequestOutputKind.DELTA
        outputs = front.engine.generate(
            {"prompt_token_ids": list(ask.prompt)}, params, ask.id, priority=ask.priority, cache_salt=ask.salt
        )
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    seen.saw(output)
                    if ask.leave_after is not None and seen.read >= ask.leave_after and not output.finished:
                        seen.outcome = "left"
                        return
                    await asyncio.sleep(ask.read_s)
            seen.outcome = "aborted" if "abort" in seen.ends.values() else SERVED
        except EngineDeadError as error:
            seen.outcome, seen.retry_after_s = "unavailable", error.retry_after_s
        except RequestError as error:
            seen.outcome, seen.error = error.code, str(error)
        except EngineError as error:
            seen.outcome, seen.error = "failed", str(error)

    async def _break(self, fault: Fault) -> None:
        core = self._cores[-1] if self._cores else None
        match fault.kind:
            case "kill core" if core is not None:
                core.kill()
            case "hang core" if core is not None:
                core.stand_still(1e9)
            case "pause core" if core is not None:
                core.stand_still(fault.seconds)
            case "kill front":
                await self._kill_front(fault.which)
            case "garbage" if core is not None:
                self._garbage(core)
            case "reset cache":
                for front in self.fronts:
                    if front is not None:
                        front.engine._send(ResetPrefixCache())
            case "die at":
                self.points.arm(fault.point, fault.which, Died)
            case "raise at":
                self.points.arm(fault.point, fault.which, BrokeError)
            case "slow":
                before, self.network.delay_s = self.network.delay_s, self.network.delay_s + 0.1
                await asyncio.sleep(fault.seconds)
                self.network.delay_s = before

    async def _kill_front(self, index: int) -> None:
        index %= len(self.fronts)
        front = self.fronts[index]
        if front is None:
            return
        self.fronts[index] = None
        front.die()
        if self.core_supervisor.core is not None:
            self.core_supervisor.core.tell(FrontGone(front.name))
        await asyncio.sleep(RESPAWN_S)
        self.fronts[index] = self._bear()

    def _garbage(self, core: SimulatedCore) -> None:
        """A stranger speaks, and a front end's frame is damaged."""
        frame = self.rng.randbytes(self.rng.randrange(40))
        for client in (b"stranger", *list(core._port.links)[:1]):
            core._port.put(client, frame)

    async def _look(self) -> None:
        """N6: a front end that would say that it is ready has an engine that moves."""
        while True:
            core = self._cores[-1] if self._cores else None
            if core is not None and core.crash is not None:
                raise core.crash
            for front in self.fronts:
                if front is None or front.engine.dead is not None:
                    continue
                assert core is not None
                hung_s = self.pulse.still_s() if core.alive else 0.0
                dead_s = 0.0
                if not core.alive:
                    dead_s = self.loop.time() - self._unready_since.setdefault(core.address, self.loop.time())
                assert hung_s <= PATIENCE.serving_s + LOOK_S, f"N6: ready, and the engine has not moved for {hung_s} s"
                assert dead_s <= 1.0, f"N6: ready, and the engine has been dead for {dead_s} s"
            if core is not None and core.engine is not None:
                self._look_for_left_overs(core.engine.scheduler.roster.alive)
            await asyncio.sleep(LOOK_S)

    def _look_for_left_overs(self, alive: Collection[str]) -> None:
        """N5: what nobody wants any more is given up soon, by an engine that moves."""
        if self.pulse.still_s() > 1.0:
            self._moves_since = self.loop.time()
        for request_id in alive:
            seen = self.seen[request_id]
            over_s = self.loop.time() - max(seen.ended_at, self._moves_since)
            assert not seen.outcome or over_s < GIVEN_UP_S, f"N5: {request_id} is served for nobody"

    async def _settle(self) -> None:
        """N5: everything comes back."""
        deadline, quiet_since = self.loop.time() + LONGEST_S, self.loop.time()
        while self.loop.time() - quiet_since < SETTLE_S:
            core = self._cores[-1]
            serves = core.alive and self.pulse.serves and self.pulse.still_s() < 1.0
            if not serves or not all(front is not None and front.engine.dead is None for front in self.fronts):
                quiet_since = self.loop.time()
            assert quiet_since < deadline, "no engine serves any more"
            await asyncio.sleep(LOOK_S)
        assert core.engine is not None and core.router is not None
        scheduler = core.engine.scheduler
        scheduler.check()
        assert not core.engine.busy, "N5: sequences are left"
        assert core.router.open == 0, "N5: the router remembers requests"
        counters = scheduler.counters
        assert counters.alive == 0 and counters.added == counters.finished + counters.aborted + counters.failed
        stats = scheduler.stats()
        assert (stats.running, stats.waiting, stats.kv_usage) == (0, 0, 0.0), f"N5: {stats}"
        assert self.pulse.tried == "", "N5: a trial is left"
        for front in self.fronts:
            assert front is not None
            assert front.engine.unfinished == 0, "N5: streams are left"
            assert len(front.engine._open._processor) == 0, "N5: texts are left"


def live(scenario: Scenario) -> World:
    """Live a scenario. Raises AssertionError; what has happened is in the error's notes."""
    from tests.simulation.loop import run

    async def main() -> World:
        world = World(scenario)
        add = Completion.add

        def passed(completion: Completion, delta: Delta) -> bool:
            world.points.at("text")
            return add(completion, delta)

        try:
            with mock.patch.object(Completion, "add", passed):
                await world.live()
            world.check()
        except BaseException as error:
            error.add_note("\n".join(world.log[-60:]))
            raise
        return world

    return run(main())
