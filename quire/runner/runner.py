"""`Runner`: one rank's compute. It applies plans to its rows, runs the model and the sampler, and decides nothing.

Life: `load`, `measure` (reports its capacity), `allocate` (takes its pages), `record`, then `launch` once per plan.
Called by the executors; it knows neither the scheduler nor any process border.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from quire.base.errors import ConfigError
from quire.config.spec import RunSpec
from quire.layers.build import Build
from quire.messages.plan import StepPlan
from quire.messages.state import Capacity, GroupLayout, Layout
from quire.ops.registry import load_providers
from quire.parallel.mesh import Mesh
from quire.platforms import native
from quire.runner.generation import GenerationSteps
from quire.runner.loaded import Loaded, Progress, choose_ops, load_model
from quire.runner.memory import memory_of
from quire.runner.pooling import PoolingSteps, PoolingWarmUp
from quire.runner.rehearsal import Rehearsal
from quire.runner.rows import Rows
from quire.runner.warm import GenerationWarmUp, Launched, Steps, WarmUp, no_room
from quire.structured.store import GrammarStore


@dataclass(frozen=True, slots=True)
class Allocated:
    """What a rank has as long as it has pages: their layout, its steps, and what runs before these count."""

    layout: Layout
    steps: Steps
    warm_up: WarmUp


class Runner:
    """The model, rows and pages of one rank.

    Attributes:
        build: layers declare in it what they keep, and which kernels were chosen.
        grammars: compiled ones, which other threads fill.

    Args:
        spec: everything decided.
        mesh: this rank among those that share the model.
        make_build: of what the layers are built in.
    """

    def __init__(self, spec: RunSpec, mesh: Mesh, make_build: type[Build] = Build) -> None:
        self.spec = spec
        self.mesh = mesh
        self.device = torch.device(spec.platform.device)
        self.grammars = GrammarStore()
        self.build = make_build(
            mesh=mesh,
            dtype=getattr(torch, spec.dtype),
            kv_dtype=getattr(torch, spec.kv_cache_dtype),
            device=self.device,
            providers=spec.platform.providers,
            max_model_len=spec.max_model_len,
            deterministic=spec.deterministic,
        )
        self._memory = memory_of(self.device)
        self._rehearsal: Rehearsal | None = None
        self._loaded: Loaded | None = None
        self._allocated: Allocated | None = None

    @property
    def loaded(self) -> Loaded:
        """The model; there since `load`."""
        assert self._loaded is not None, "load comes first"
        return self._loaded

    @property
    def allocated(self) -> Allocated:
        """Pages and steps; there from `allocate` to `release`."""
        assert self._allocated is not None, "allocate comes first"
        return self._allocated

    def load(self, progress: Progress) -> None:
        """Build the model and fill its weights. Raises CheckpointError."""
        if self.spec.threads is not None:
            torch.set_num_threads(self.spec.threads)
        load_providers(self.spec.platform.providers)
        if "cpu" in self.spec.platform.providers:
            native.set_threads(torch.get_num_threads())
        ops = choose_ops(self.build, self.spec)
        if self.spec.facts.pooling is None and self.spec.warm_tokens:
            self._rehearsal = Rehearsal(self.spec, self.mesh.size)
        self._loaded = Loaded(load_model(self.spec, self.mesh, self.build, progress), ops)

    def measure(self) -> Capacity:
        """Run the largest step on scratch pages, and report what memory it leaves for real ones.

        Where kernels compile, steps of all sizes run before. The largest is not run where the user has fixed the size
        of the pages.
        """
        specs = [state.spec for state in self.build.states]
        # Two pages per group are enough: every entry of the page tables names page 1.
        scratch = [GroupLayout(spec, 1, self.spec.page_size, 2) for spec in dict.fromkeys(specs)]
        layout = Layout(scratch, self.spec.max_model_len)
        if self.spec.warm_tokens:
            # Before memory is measured: code that is loaded takes some, too.
            self._take(layout)
            self._run_all()
            self.release()
        recorded = 0
        with self._memory.peak() as needed:
            if self.spec.num_pages is None and self.spec.kv_cache_memory_bytes is None:
                self._take(layout)
                self.allocated.warm_up.run_largest()
                recorded = self.allocated.warm_up.recorded_bytes()
                self.release()
        free = self._memory.free_bytes()
        budget = self._memory.budget(free, self.spec.memory_fraction, needed[0] + recorded)
        return Capacity(budget, specs, self._recordable)

    @property
    def _recordable(self) -> bool:
        """Whether every kernel of the model can be recorded. Several ranks record nothing (`resolve`)."""
        return all(choice.capturable for choice in self.build.choices)

    def _run_all(self) -> None:
        warm_up, rehearsal = self.allocated.warm_up, self._rehearsal
        if rehearsal is not None and isinstance(warm_up, GenerationWarmUp) and self._agreed(rehearsal.wanted):
            rehearsal.play(warm_up.rehearse)
        warm_up.run_all()

    def _agreed(self, wanted: bool) -> bool:
        """What rank 0 says: steps are run by all ranks or by none."""
        return bool(self.mesh.broadcast(torch.tensor([wanted], dtype=torch.uint8, device=self.device)).item())

    def allocate(self, layout: Layout) -> None:
        """Take pages and rows, and what samples or pools. Raises ConfigError where pages leave too little memory."""
        with self._naming_pages():
            self._take(layout)

    def _take(self, layout: Layout) -> None:
        """As `allocate`. Layers whose state is the same share a group."""
        for index, group in enumerate(layout.groups):
            for state in self.build.states:
                if state.spec == group.spec:
                    state.bind(*state.allocate(group.pages, group.page_size), index)
        rows = Rows(self.spec.max_num_seqs, layout.max_model_len, layout, self.device)
        self._allocated = Allocated(layout, *self._begin(layout, rows))

    def _begin(self, layout: Layout, rows: Rows) -> tuple[Steps, WarmUp]:
        """Steps of an engine that pools, or of one that generates."""
        spec, facts = self.spec, self.spec.facts.pooling
        if facts is not None:
            pooling = PoolingSteps(facts, self.loaded, rows, self.mesh)
            return pooling, PoolingWarmUp(spec, layout, pooling)
        steps = GenerationSteps(spec, self.loaded, rows, self.mesh, self.grammars, self._recordable)
        return steps, GenerationWarmUp(spec, layout, steps, self._memory)

    def release(self) -> None:
        """Give back pages and rows."""
        for state in self.build.states:
            state.unbind()
        # Nothing may wait for the collector of cycles: a tensor that lives on keeps memory which is then measured.
        if self._allocated is not None:
            self._allocated.steps.forget()
        self._allocated = None

    def close(self) -> None:
        """Give back pages and weights, whoever still holds layers: a circle, or the frames of an error."""
        self.release()
        loaded, self._loaded = self._loaded, None
        for weight in [] if loaded is None else loaded.model.parameters():
            weight.data = weight.data.new_empty(0)

    def record(self) -> None:
        """Record steps where the spec asks for it and every kernel allows it.

        After `allocate`. Where kernels compile, the largest step runs before, also where the user has fixed the size of
        the pages. Raises ConfigError where these leave too little memory.
        """
        with self._naming_pages():
            self.allocated.warm_up.record()

    @contextmanager
    def _naming_pages(self) -> Iterator[None]:
        """Raises ConfigError where no memory is left, since pages are what the user can have fewer of."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise ConfigError(no_room(self.spec)) from error

    def launch(self, plan: StepPlan) -> Launched:
        """Start one step. Returns as soon as the device has its work; the result waits for it."""
        return self.allocated.steps.launch(plan)
