"""A simulated core process: the engine's own core and router, turned by a task, over ranks of plain Python."""

import asyncio
import atexit
from collections import deque
from collections.abc import Callable
from functools import cache
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any
from unittest import mock

from quire.base.errors import QuireError
from quire.config.fields import EngineConfig
from quire.config.sources import engine_config
from quire.engine.begin import Timeline, begin
from quire.engine.core import EngineCore
from quire.engine.pulse import Pulse
from quire.engine.router import Router
from quire.messages.codec import Codec
from quire.messages.control import FrontGone
from quire.messages.plan import StepPlan, StepResult
from quire.messages.request import Request
from quire.messages.state import Capacity, Layout, Retention, StateSpec
from quire.messages.wire import ToClient
from tests.config import facts
from tests.scheduler.device import Device
from tests.scheduler.engine import EOS, VOCAB
from tests.scheduler.hashing import Poison
from tests.simulation.faults import BrokeError, Died, Hung, Points
from tests.simulation.network import Port
from tests.simulation.scenario import BROKEN, DEADLY, HARMFUL, POISONOUS, SEAMS, SPOILED, STICKY, Scenario
from tests.tokenizer.samples import make_byte_bpe

CONTEXT = 39
BEAT_S = 0.25
SECRET = "secret"


@cache
def model() -> Any:
    """Facts of the toy, with a real tokenizer on the disk."""
    folder = make_byte_bpe(Path(mkdtemp(prefix="quire-simulation-")))
    atexit.register(rmtree, folder, ignore_errors=True)
    return facts.model(path=str(folder), vocab_size=VOCAB, context_len=CONTEXT, eos_token_ids=[EOS])


@cache
def config(scenario: Scenario) -> EngineConfig:
    """What the user asks for in a scenario."""
    return engine_config(
        model="toy",
        max_num_seqs=scenario.max_num_seqs,
        max_num_batched_tokens=scenario.max_num_batched_tokens,
        async_scheduling=scenario.depth == 2,
        block_size=scenario.page_size,
        num_gpu_blocks_override=scenario.pages,
        enable_prefix_caching=scenario.prefix_caching,
        scheduling_policy=scenario.policy,
    )


def rules(scenario: Scenario) -> list[Retention]:
    """One per group of pages."""
    return [Retention()] + ([] if scenario.window is None else [Retention(window=scenario.window)])


class Made:
    """A step that has been computed."""

    def __init__(self, points: Points, result: StepResult) -> None:
        self._points = points
        self._result = result

    def wait(self) -> None:
        """It took no time."""

    def result(self) -> StepResult:
        """Read it."""
        self._points.at("core.result")
        return self._result


class Ranks:
    """The executor: a device of plain Python, and requests that do harm.

    Attributes:
        harmed: set when a request kills or hangs it.
    """

    def __init__(self, scenario: Scenario, points: Points) -> None:
        self._scenario = scenario
        self._points = points
        self.harmed = False
        self.device: Device | None = None

    def load(self, progress: object) -> dict[str, str]:
        """Nothing to load."""
        self._points.at("core.load")
        return {}

    def measure(self) -> Capacity:
        """One layer per rule."""
        return Capacity(1 << 20, [StateSpec(8 + number, rule) for number, rule in enumerate(rules(self._scenario))])

    def allocate(self, layout: Layout) -> None:
        """Pages of Python numbers."""
        self.device = Device(layout, VOCAB)

    def step(self, plan: StepPlan) -> Made:
        """Compute a plan."""
        self._points.at("core.step")
        device = self.device
        assert device is not None
        poisoned: dict[int, Poison] = {}
        prompts = {row: mirrored.new for row, mirrored in device.rows.items()} | {new.row: new for new in plan.new}
        for grant in plan.grants:
            new = prompts[grant.row]
            harm, later = new.token_ids[0], len(new.token_ids) > new.prompt_len or grant.row in device.rows
            if harm == SPOILED and grant.samples:
                poisoned[grant.row] = Poison(str(new.seed), 0, plan.step)
            self.harmed |= later and harm in HARMFUL
            if later and harm == DEADLY:
                raise Died("a request has killed it")
            if later and harm == BROKEN:
                raise BrokeError("a request has broken the ranks")
            if later and harm == STICKY:
                raise Hung("a request has hung it")
        return Made(self._points, device.run(plan, poisoned))

    def prepare(self, wanted: object, vocabulary: object, unused: object) -> None:
        """No grammars here."""

    def stop(self) -> None:
        """Nothing to give back."""


class SimulatedCore:
    """The process.

    Args:
        address: where it listens.
        port: what arrives there.
        pulse: the page.
        scenario: how fast it is.
        points: where it fails.

    Attributes:
        harmed: whether a request has killed or hung it.
        crash: what has ended it and was not asked for.
        on_begin: called with the id of each request that the scheduler takes in.
    """

    def __init__(self, address: str, port: Port, pulse: Pulse, scenario: Scenario, points: Points) -> None:
        self.address = address
        self.engine: EngineCore | None = None
        self.router: Router | None = None
        self.harmed = False
        self.crash: Exception | None = None
        self.on_begin: Callable[[str], None] = lambda request_id: None
        self._port = port
        self._pulse = pulse
        self._scenario = scenario
        self._points = points
        self._launcher: deque[FrontGone] = deque()
        self._loop = asyncio.get_running_loop()
        self._end: asyncio.Future[str] = self._loop.create_future()
        self._still_until = 0.0
        self._stopping = False
        self._encode = Codec[ToClient](ToClient).encode
        self._task = self._loop.create_task(self._live())

    @property
    def alive(self) -> bool:
        """Whether the process has not ended."""
        return not self._end.done()

    async def ended(self) -> str:
        """See `Core`."""
        return await asyncio.shield(self._end)

    async def stop(self, timeout_s: float) -> None:
        """See `Core`."""
        self._stopping = True
        self._port.news.set()
        if self.alive and timeout_s:
            await asyncio.wait([self._end], timeout=timeout_s)
        self.kill()

    def kill(self) -> None:
        """Signal 9."""
        self._over("the engine process was ended by signal 9")
        self._task.cancel()

    def tell(self, news: FrontGone) -> None:
        """See `Core`."""
        self._launcher.append(news)
        self._port.news.set()

    def tell_stacks(self) -> None:
        """There are none."""

    def stand_still(self, seconds: float) -> None:
        """Signal STOP, and CONT after so long."""
        self._still_until = max(self._still_until, self._loop.time() + seconds)
        self._port.news.set()

    def _over(self, how: str) -> None:
        if self.alive:
            self._end.set_result(how)
            self._port.close()

    async def _live(self) -> None:
        try:
            await asyncio.sleep(self._scenario.load_s)
            await self._serve()
            self._over("the engine process ended with 0")
        except Died as death:
            self._over(f"the engine process was ended by signal 9: {death}")
        except QuireError as error:
            self._pulse.last_words(str(error))
            self._over("the engine process ended with 2")
        except Exception as error:
            if not isinstance(error, BrokeError) or str(error) in SEAMS:
                self.crash = error
            # As `engine.process.main` does.
            self._pulse.last_words(f"the engine failed: {error}")
            if self.router is not None:
                self.router.fail("the engine failed")
            await asyncio.sleep(self._scenario.delay_s * 5)
            self._over("the engine process ended with 1")

    async def _serve(self) -> None:
        ranks = Ranks(self._scenario, self._points)
        with mock.patch("quire.engine.begin.detect", lambda device, kernels: facts.CPU):
            timeline = Timeline(clock=self._loop.time)
            self.engine = core = begin(
                config(self._scenario), model(), lambda done, total: None, timeline, lambda spec: ranks
            )
        try:
            self._arm(core)
            self.router = router = Router(core, self._pulse, self._send, SECRET)
            self._pulse.ready(0.0)
            busy = False
            while not self._stopping:
                if not busy:
                    await self._wait()
                while self._loop.time() < self._still_until:
                    await asyncio.sleep(self._still_until - self._loop.time())
                self._hear(router)
                try:
                    busy = router.turn()
                except Hung:
                    self.harmed = True
                    await asyncio.sleep(1e9)
                finally:
                    self.harmed = ranks.harmed
                core.scheduler.check()
                if busy:
                    await asyncio.sleep(self._scenario.step_s)
        finally:
            core.grammars.close()

    def _arm(self, core: EngineCore) -> None:
        """Fault points within the engine."""
        points, scheduler, pages = self._points, core.scheduler, core.scheduler.roster.pages
        add = scheduler.add

        def begin(request: Request, now: float) -> None:
            add(request, now)
            self.on_begin(request.id)

        setattr(scheduler, "add", begin)  # noqa: B010
        points.before("scheduler.add", scheduler, "add")
        points.before("scheduler.offer", pages, "offer")
        points.before("scheduler.take", pages, "take")
        points.before("scheduler.register", pages, "register")
        offer = core.scheduler.roster.grammars.offer

        def poisonous(seq: Any, tokens: int) -> int:
            if seq.request.token_ids[0] == POISONOUS and seq.computed:
                raise BrokeError("scheduler.offer")
            return offer(seq, tokens)

        setattr(core.scheduler.roster.grammars, "offer", poisonous)  # noqa: B010

    async def _wait(self) -> None:
        if not self._port.inbox and not self._launcher:
            self._port.news.clear()
            await asyncio.wait([asyncio.ensure_future(self._port.news.wait())], timeout=BEAT_S)

    def _hear(self, router: Router) -> None:
        while self._launcher:
            router.gone(self._launcher.popleft().name)
        while self._port.inbox:
            router.handle(*self._port.inbox.popleft())

    def _send(self, client: bytes, message: ToClient) -> None:
        self._points.at("core.send")
        link = self._port.links.get(client)
        if link is not None:
            link.deliver(self._encode(message))
