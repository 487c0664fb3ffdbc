"""A small engine around the real scheduler and the fake device: the loop of the core, and what clients hear.

Used for plays (`engine.add(prompt=9)`, `engine.step() == "A9"`) and by the state machine.
"""

from collections import Counter, deque
from string import ascii_uppercase

from quire.messages.params import SamplingParams
from quire.messages.plan import StepPlan, StepResult
from quire.messages.request import Request
from quire.messages.state import GroupLayout, Layout, Retention, StateSpec
from quire.messages.wire import Delta
from quire.scheduler.intake import sibling_seed
from quire.scheduler.limits import Limits
from quire.scheduler.scheduler import Scheduler
from quire.scheduler.sequence import Sequence
from tests.scheduler.device import Device
from tests.scheduler.hashing import Poison
from tests.scheduler.solo import Said, run_solo

VOCAB = 50
EOS = 49


def layout_of(rules: list[Retention], *, pages: int = 40, page_size: int = 4, max_model_len: int = 40) -> Layout:
    """One group per rule."""
    groups = [GroupLayout(StateSpec(8 + i, rule), 1, page_size, pages) for i, rule in enumerate(rules)]
    return Layout(groups, max_model_len)


class Engine:
    """Depth 1 is plain, 2 overlapped; `limits.chain` False with depth 4 is pipelined."""

    def __init__(self, layout: Layout | None = None, *, depth: int = 1, scheduler=None, **limits) -> None:
        self.layout = layout or layout_of([Retention()])
        self.limits = Limits(**{"max_num_seqs": 8, "max_num_batched_tokens": 16, "watermark": 0.0, **limits})
        self.scheduler = scheduler or Scheduler(self.limits, self.layout, hash_key=b"key", seed=1)
        self.depth = depth
        self.device = Device(self.layout, VOCAB)
        self.flights: deque[tuple[StepPlan, StepResult]] = deque()
        self.requests: dict[str, Request] = {}
        self.heard: dict[tuple[str, int], Said] = {}
        self.silent: set[tuple[str, int]] = set()  # the client has ended these and wants to hear nothing
        self.poisoned: set[str] = set()  # request ids whose next computed tokens are not finite
        self.known: set[Poison] = set()  # causes for which a sequence has ended with an error
        self.tenant_of: dict[tuple[int, int], str] = {}  # (group, page): who may read what stands there
        self.clock = 0.0

    # ── plays ──

    def add(self, prompt: int | list[int], *, n: int = 1, max_tokens: int = 4, **params) -> str:
        """Add a request; an integer is the length of a prompt that nobody shares. Its id is the next letter."""
        name = ascii_uppercase[len(self.requests)]
        tokens = prompt if isinstance(prompt, list) else [ord(name)] * prompt
        request_keys = {
            key: params.pop(key) for key in ("priority", "cache_salt", "owner", "eos_token_ids") if key in params
        }
        sampling = SamplingParams(n=n, max_tokens=max_tokens, **{"seed": ord(name), **params})
        self.submit(Request(id=name, token_ids=tokens, params=sampling, **request_keys))
        return name

    def step(self) -> str:
        """Plan, and settle what is due. Returns the plan as text: `A9 B1`; '' without one."""
        plan = self.turn()
        return " ".join(f"{self.name(grant.row)}{grant.tokens}" for grant in plan.grants) if plan else ""

    def name(self, row: int) -> str:
        """The letter of the sequence in a row, with its index if it is not the first."""
        new = self.device.rows[row].new
        for request in self.requests.values():
            if request.token_ids == new.token_ids[: new.prompt_len]:
                for index in range(request.params.n):
                    if new.seed == self.seed(request, index):
                        return request.id + (str(f".{index}:") if index else "")
        raise AssertionError("a row that nobody asked for")

    def seed(self, request: Request, index: int) -> int:
        """Seed of a sequence."""
        return sibling_seed(request.params.seed, index)

    def finish_all(self) -> None:
        """Step until nothing is left. Being stuck is a failure, and so is more than everybody could need.

        Each sequence computes its tokens once, and again after each preemption and after one fault in flight; with one
        token a step, and one step in so many turns as there are plans in flight, that is a bound.
        """
        alive = [seq for sequences in self.scheduler.roster.alive.values() for seq in sequences]
        rounds = self.limits.max_preemptions + 2
        for _ in range(100 + self.depth * rounds * sum(seq.max_len for seq in alive)):
            if not self.scheduler.has_work:
                break
            before = len(self.flights)
            plan = self.turn()
            assert plan or before, "waiting for ever"
        assert not self.scheduler.has_work, "no end in sight"
        self.scheduler.check()

    # ── the loop ──

    def submit(self, request: Request) -> None:
        """Add a request that is ready made."""
        self.scheduler.add(request, self.clock)
        self.requests[request.id] = request
        for index in range(request.params.n):
            self.heard[request.id, index] = Said()

    def turn(self) -> StepPlan | None:
        """One turn of the engine's loop."""
        self.clock += 0.5
        plan = self.scheduler.plan(self.clock) if len(self.flights) < self.depth else None
        if plan:
            self.check_plan(plan)
            self.flights.append((plan, self.device.run(plan, self.poison(plan))))
        self.scheduler.check()
        if self.flights and (len(self.flights) == self.depth or not plan):
            self.settle()
        return plan

    def settle(self) -> None:
        """Commit the oldest plan in flight."""
        _, result = self.flights.popleft()
        flight = self.scheduler.flights[0]
        causes = {
            (seq.id, seq.index): self.device.blame[result.step, seq.row]
            for seq in (*flight.chunks, *flight.sampling)
            if seq.row in result.bad
        }
        deltas = self.scheduler.commit(result)
        failed = {(delta.id, delta.index) for delta in deltas if delta.finish_reason == "error"}
        own = {causes[key] for key in failed if causes[key][:2] == key}
        for key in failed:
            # Who has read what another one spoiled may fail only while nobody knows of it.
            mine = causes[key][:2] == key
            assert mine or causes[key] not in self.known | own, "the fault of one has ended another"
        self.known |= {causes[key] for key in failed}
        for delta in deltas:
            self.hear(delta)
        self.scheduler.check()

    def poison(self, plan: StepPlan) -> dict[int, Poison]:
        """Rows of this plan that are to fail."""
        flight = self.scheduler.flights[-1]
        seqs = [seq for seq in (*flight.chunks, *flight.sampling) if seq.id in self.poisoned]
        self.poisoned -= {seq.id for seq in seqs}
        return {seq.row: Poison(seq.id, seq.index, plan.step) for seq in seqs}

    def check_plan(self, plan: StepPlan) -> None:
        """What holds for every plan, whatever the policy."""
        assert plan.grants
        assert sum(grant.tokens for grant in plan.grants) <= self.limits.max_num_batched_tokens
        assert len(self.scheduler.roster.running) <= self.limits.max_num_seqs
        flight = self.scheduler.flights[-1]
        seqs = [*flight.chunks, *flight.sampling]
        assert Counter(seq.row for seq in seqs) == Counter(grant.row for grant in plan.grants)
        for seq in seqs:
            assert seq.preemptions <= self.limits.max_preemptions
            if not seq.chain:
                assert seq.computed <= len(seq.tokens), "planned a token that only a later stage will know"
        self.check_tenants(plan, {seq.row: seq for seq in seqs})

    def check_tenants(self, plan: StepPlan, seqs: dict[int, Sequence]) -> None:
        """Pages are shared within a tenant only; with caching off, within a request only."""

        def tenant(row: int) -> str:
            seq = seqs[row]
            return "salt " + seq.request.cache_salt if self.limits.prefix_caching else "request " + seq.id

        for new in plan.new:
            shared = [(number, page) for number, pages in enumerate(new.pages) for page in pages if page]
            assert all(self.tenant_of[key] == tenant(new.row) for key in shared), "a page of another tenant"
        for grant in plan.grants:
            for number, pages in enumerate(grant.new_pages):
                self.tenant_of |= {(number, page): tenant(grant.row) for page in pages}

    def hear(self, delta: Delta) -> None:
        """What a front end does with news; anything after the end is a fault."""
        key = delta.id, delta.index
        assert key not in self.silent, "news for somebody who has left"
        said = self.heard[key]
        assert said.finish_reason is None, "news after the end"
        assert delta.token_ids or delta.finish_reason
        if delta.prompt_logprobs is not None:
            assert not said.tokens and said.prompt_logprobs is None
            said.prompt_logprobs = [entry.logprobs[0] for entry in delta.prompt_logprobs]
        said.tokens += delta.token_ids
        said.logprobs += [entry.logprobs[0] for entry in delta.logprobs or ()]
        said.finish_reason, said.stop_reason, said.error = delta.finish_reason, delta.stop_reason, delta.error

    # ── what must have been said ──

    def solo(self, key: tuple[str, int]) -> Said:
        """The same sequence without company."""
        rules = [group.spec.retention for group in self.layout.groups]
        return run_solo(self.requests[key[0]], key[1], rules, VOCAB, self.layout.max_model_len)

    def check_said(self, key: tuple[str, int]) -> None:
        """What was heard is what the sequence says alone, up to where its client, or a fault, ended it."""
        said, solo = self.heard[key], self.solo(key)
        assert said.tokens == solo.tokens[: len(said.tokens)]
        assert said.logprobs == solo.logprobs[: len(said.logprobs)]
        if said.tokens:
            assert said.prompt_logprobs == solo.prompt_logprobs
        if key not in self.silent and said.finish_reason != "error":
            assert said == solo


def check_all(engine: Engine) -> None:
    """Play to the end: everybody has said what it says alone."""
    engine.finish_all()
    for key in engine.heard:
        engine.check_said(key)
