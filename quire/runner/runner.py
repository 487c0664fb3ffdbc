"""`Runner`: one rank's compute. It applies plans to its rows, runs the model and the sampler, and decides nothing.

Life: `load`, `measure` (reports its capacity), `allocate` (takes its pages), then `launch` once per plan. Called by the
executors; it knows neither the scheduler nor any process border.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from quire import loading, models
from quire.base.errors import ConfigError
from quire.config.spec import RunSpec
from quire.layers.build import Build
from quire.messages.params import SamplingParams
from quire.messages.plan import Grant, StepPlan
from quire.messages.state import Capacity, GroupLayout, Layout
from quire.ops.attention import MANY
from quire.ops.greedy import greedy_sample
from quire.ops.inputs import Bounds, step_inputs
from quire.ops.registry import Sizes, load_providers
from quire.ops.rows import append_tokens
from quire.ops.step import StepInputs
from quire.parallel.mesh import Mesh
from quire.platforms import native
from quire.runner.graphs import DecodeGraphs, DecodeWork, Recorder
from quire.runner.in_flight import InFlight
from quire.runner.memory import memory_of
from quire.runner.prompt_logprobs import describe_prompts, wants_prompt_logprobs
from quire.runner.ragged import RaggedGraphs, Room
from quire.runner.rehearsal import Rehearsal
from quire.runner.rows import Rows
from quire.runner.start import start_kernels
from quire.runner.upload import upload
from quire.runner.warm import DRAWS, LOGIT_ROWS, largest_step, no_room, step_of
from quire.sampling.kernels import choose_kernels
from quire.sampling.sampler import Sampler, Samples
from quire.structured.store import GrammarStore

logger = logging.getLogger(__name__)

RECORDING_BYTES = 4 << 20
"""What one more recording takes on the device for its list of launches."""

Progress = Callable[[int, int], None]
"""Called with the bytes read so far and in all, while weights load."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What kernels are told of a step.

    Attributes:
        sharing: which rows begin alike.
        singles: so many rows at the front compute one token each.
        every: hidden states of all tokens are wanted.
    """

    sharing: bool = False
    singles: int = 0
    every: bool = False


class Runner:
    """The model, rows and pages of one rank.

    Attributes:
        rehearses: whether `_rehearse` takes all kernels that will be compiled.

    Args:
        spec: everything decided.
        mesh: this rank among those that share the model.
    """

    rehearses = True

    def __init__(self, spec: RunSpec, mesh: Mesh) -> None:
        self.spec = spec
        self.mesh = mesh
        self.device = torch.device(spec.platform.device)
        self.memory = memory_of(self.device)
        self.grammars = GrammarStore()
        self.rehearsal: Rehearsal | None = None
        self.build = Build(
            mesh=mesh,
            dtype=getattr(torch, spec.dtype),
            kv_dtype=getattr(torch, spec.kv_cache_dtype),
            device=self.device,
            providers=spec.platform.providers,
            max_model_len=spec.max_model_len,
            deterministic=spec.deterministic,
        )

    def load(self, progress: Progress) -> None:
        """Build the model and fill its weights. Raises CheckpointError."""
        if self.spec.threads is not None:
            torch.set_num_threads(self.spec.threads)
        load_providers(self.spec.platform.providers)
        if "cpu" in self.spec.platform.providers:
            native.set_threads(torch.get_num_threads())
        self.make_inputs = self.build.op(step_inputs, None)
        self.draw_greedy = self.build.op(greedy_sample, None)
        self.kernels = choose_kernels(self.spec.platform.providers, self.spec.deterministic)
        self.append_tokens = self.build.op(append_tokens, None)
        if self.rehearses and self.spec.warm_tokens:
            self.rehearsal = Rehearsal(self.spec, self.mesh.size)
        dummy = self.spec.load_format == "dummy"
        checkpoint = loading.opened(self.spec.facts, self.device, self.spec.quantization, dummy=dummy)
        build = replace(self.build, checkpoint=checkpoint.quantized, quantization=checkpoint.online)
        impl, trusted = self.spec.model_impl, self.spec.trust_remote_code
        if not dummy and models.is_own(self.spec.facts, impl):
            # What does not fit is found before it has taken the device's memory.
            imagined = models.build(self.spec.facts, build.imagined(), impl)
            loading.check(loading.weights_of(imagined), checkpoint)
        self.model = models.build(self.spec.facts, build, impl, trust_remote_code=trusted)
        sizes = Sizes(self.spec.max_num_batched_tokens, self.spec.max_model_len, self.spec.page_size)
        started = start_kernels(self.build.choices, sizes)
        if dummy:
            loading.fill_dummy(self.model, self.spec.seed, self.mesh)
        else:
            loading.load(self.model, checkpoint, self.mesh, progress)
        started.result()
        for note in [] if checkpoint.quantized is None or self.mesh.rank else checkpoint.quantized.notes():
            logger.warning("%s", note)

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
            self.allocate(layout)
            if self.rehearsal is not None and self._agreed(self.rehearsal.wanted):
                self.rehearsal.play(self._rehearse)
            self._warm_all()
            self.release()
        recorded = 0
        with self.memory.peak() as needed:
            if self.spec.num_pages is None and self.spec.kv_cache_memory_bytes is None:
                self.allocate(layout)
                self._run_once(self._largest())
                recorded = self._recorded_bytes()
                self.release()
        free = self.memory.free_bytes()
        return Capacity(self.memory.budget(free, self.spec.memory_fraction, needed[0] + recorded), specs)

    def _agreed(self, wanted: bool) -> bool:
        """What rank 0 says: steps are run by all ranks or by none."""
        return bool(self.mesh.broadcast(torch.tensor([wanted], dtype=torch.uint8, device=self.device)).item())

    @torch.inference_mode()
    def _recorded_bytes(self) -> int:
        """What recordings will hold: the largest of each kind, in whose memory the others find theirs."""
        recorder = Recorder(self.device)
        if not recorder.records or not self._recordable:
            return 0
        before = self.memory.kept_bytes()
        self.ragged.record(recorder, self.ragged.rooms[-1:])
        self.graphs.record(recorder, self.graphs.sizes[-1:])
        count = len(self.ragged.rooms) + len(self.graphs.sizes)
        return self.memory.kept_bytes() - before + count * RECORDING_BYTES

    @torch.inference_mode()
    def _warm_all(self) -> None:
        """Steps of all sizes, all ways to draw tokens, for one row and for several, prompts beside rows that decode."""
        rows, budget = self.spec.max_num_seqs, self.spec.max_num_batched_tokens
        most = self.layout.max_model_len - 1
        for tokens in self.spec.warm_tokens:
            self._warm([min(tokens, most)], DRAWS[0])
        hidden = self._decode(upload([self.rows.dummy], self.device), False)
        for count in LOGIT_ROWS:
            self.model.logits(hidden.expand(count, -1).contiguous())
        counts = sorted({1, min(2, rows), min(16, rows)})
        for params in DRAWS:
            for count in counts:
                self._warm([1] * count, params)
        for count in counts:
            self._warm([1] * (count - 1) + [min(budget - count, most, MANY)], DRAWS[0])

    @property
    def _recordable(self) -> bool:
        return all(choice.capturable for choice in self.build.choices)

    def _largest(self) -> StepPlan:
        """The plan that needs most memory."""
        return largest_step(self.spec, self.layout)

    def _take_pages(self, layout: Layout) -> None:
        """Take pages and rows. Layers whose state is the same share a group."""
        for index, group in enumerate(layout.groups):
            for state in self.build.states:
                if state.spec == group.spec:
                    state.bind(*state.allocate(group.pages, group.page_size), index)
        self.layout = layout
        self.rows = Rows(self.spec.max_num_seqs, layout.max_model_len, layout, self.device)

    def allocate(self, layout: Layout) -> None:
        """Take pages and rows, and what samples."""
        self._take_pages(layout)
        rows, length = self.spec.max_num_seqs, layout.max_model_len
        # Every rank runs the model; rank 0 samples and tells the others.
        self.sampler: Sampler | None = None
        if self.mesh.rank == 0:
            # One row more than sequences have, for the dummy.
            vocab = self.spec.facts.vocab_size
            self.sampler = Sampler(rows + 1, vocab, length, self.device, self.grammars, self.kernels)
        draws = self.kernels.recordable and self.mesh.size == 1
        work = DecodeWork(self._decode, self._greedy, self._random if draws else None, any(self.rows.lasting))
        self.graphs = DecodeGraphs(self.spec.graph_rows, work, self.rows.dummy, self.device)
        tokens = [size for size in self.spec.graph_tokens if size < length]
        self.ragged = RaggedGraphs(self.spec.graph_singles, tokens, self._read, self.rows.dummy, self.device)
        self._decoding: list[int] = []
        self._last: InFlight | None = None
        self._order = upload([], self.device)

    def release(self) -> None:
        """Give back pages and rows."""
        for state in self.build.states:
            state.unbind()
        # Nothing may wait for the collector of cycles: a tensor that lives on keeps memory which is then measured.
        self.graphs.forget()
        self.ragged.forget()
        del self.rows, self.sampler, self.graphs, self.ragged
        self._last = None

    @torch.inference_mode()
    def record(self) -> None:
        """Record steps where the spec asks for it and every kernel allows it.

        After `allocate`: recordings hold the addresses of pages. Where kernels compile, the largest step runs before,
        also where the user has fixed the size of the pages. Raises ConfigError where these leave too little memory.
        """
        try:
            if self.spec.warm_tokens:
                # What torch keeps of its memory is enough for all steps to come: from now on no more is taken.
                self._run_once(self._largest())
            self._record(Recorder(self.device), self.ragged, self.graphs)
        except torch.OutOfMemoryError as error:
            raise ConfigError(no_room(self.spec)) from error

    def _record(self, recorder: Recorder, *recordings: DecodeGraphs | RaggedGraphs) -> None:
        for some in recordings if self._recordable else ():
            some.record(recorder)

    @torch.inference_mode()
    def _rehearse(self) -> None:
        self._run_once(self._largest())
        self._warm_all()
        # What compiles longest are kernels of decode steps: they shall not be the last to be heard of.
        self._record(Recorder(self.device, rehearses=True), self.graphs, self.ragged)

    def _warm(self, counts: list[int], params: SamplingParams) -> None:
        """Sequences of so many tokens each, all on one page that nobody uses yet."""
        self._run_once(step_of(counts, params, [group.page_size for group in self.layout.groups]))

    def _run_once(self, plan: StepPlan) -> None:
        """Run a step of new sequences, and forget them."""
        self.launch(plan).result()
        self._begin(StepPlan(0, list(self.rows.host), [], []))

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> InFlight:
        """Start one step. Returns as soon as the device has its work; `InFlight.result` waits for it."""
        if self._last is not None:
            self._last.draw()
        self._begin(plan)
        grants = plan.grants
        if self.graphs.covers(len(grants)) and all(g.samples and g.tokens == 1 for g in grants):
            step = self._launch_recorded(plan)
        else:
            step = self._launch_eager(plan)
        self.rows.advance(plan)
        self._last = step
        return step

    def _launch_recorded(self, plan: StepPlan) -> InFlight:
        rows = [grant.row for grant in plan.grants]
        if rows != self._decoding:
            self._decoding, self._order = rows, upload(rows, self.device)
        hidden = self.graphs.forward(self._order, self.rows.sharing)
        drawn = None
        if self.sampler is not None and self.sampler.plain(rows):
            drawn = self.graphs.greedy(len(rows))
        elif self.sampler is not None and self.graphs.draws and self.sampler.drawn(rows):
            drawn = self.graphs.random(len(rows))
        if drawn is None:
            return self._drawn(InFlight(plan.step, rows, sampler=self.sampler), self._order, hidden)
        # Copied: the recording's own tensor is overwritten by the next step.
        return InFlight(plan.step, rows, Samples(rows, drawn.clone()))

    def _launch_eager(self, plan: StepPlan) -> InFlight:
        # Those that compute one token come first, so that kernels can tell them from the others.
        grants = sorted(plan.grants, key=lambda grant: grant.tokens > 1)
        lines = [i for i, g in enumerate(grants) if g.samples]
        every = wants_prompt_logprobs(self.rows, grants)
        room = None if every else self.ragged.find(grants)
        if room is not None:
            return self._launch_ragged(plan.step, room, grants)
        numbers = upload([*(g.row for g in grants), *(g.tokens for g in grants), *lines], self.device)
        order, counts, sampling = torch.split(numbers, [len(grants), len(grants), len(lines)])
        longest = max(self.rows.host[g.row].computed + g.tokens for g in grants)
        bounds = Bounds(sum(g.tokens for g in grants), max(g.tokens for g in grants), longest)
        singles = sum(g.tokens == 1 for g in grants)
        kind = Kind(self.rows.sharing, singles, every)
        inputs, hidden = self._forward(order, counts.int(), sampling, bounds, kind)
        described = describe_prompts(self.rows, grants, hidden, self.model, self.kernels)
        # Every rank takes part in making logits; the one that samples tells.
        step = InFlight(plan.step, prompt_logprobs=described if self.sampler else {}, sampler=self.sampler)
        if lines:
            step.rows = [grants[i].row for i in lines]
            return self._drawn(step, order[sampling], hidden[inputs.logit_rows if every else sampling])
        return step

    def _launch_ragged(self, step: int, room: Room, grants: list[Grant]) -> InFlight:
        """A recorded step with prompts; tokens are drawn outside of the recording."""
        hidden, ends = self.ragged.forward(room, grants)
        lines = [i for i, g in enumerate(grants) if g.samples]
        if not lines:
            return InFlight(step, sampler=self.sampler)
        rows = [grants[i].row for i in lines]
        numbers = upload([*rows, *(ends[i] for i in lines)], self.device)
        order, at = torch.split(numbers, [len(lines), len(lines)])
        return self._drawn(InFlight(step, rows, sampler=self.sampler), order, hidden.index_select(0, at))

    def _forward(
        self,
        order: Tensor,
        counts: Tensor,
        sampling: Tensor,
        bounds: Bounds,
        kind: Kind,
    ) -> tuple[StepInputs, Tensor]:
        """Compute the next `counts` tokens of the rows in `order`; they count as computed afterwards.

        Returns: hidden states of each row's last token, or of all tokens where the kind says so.
        """
        rows = self.rows
        inputs: StepInputs = self.make_inputs(
            order, counts, sampling, rows.tokens, rows.computed, rows.page_tables, rows.page_sizes, bounds
        )
        # Where each row computes one token, the last ones are all.
        inputs = replace(inputs, singles=kind.singles, ends=inputs.max_query > 1 and not kind.every)
        if kind.sharing:
            inputs = rows.shared_by(order, inputs)
        hidden: Tensor = self.model(inputs)
        rows.computed.index_add_(0, order, counts)
        return inputs, hidden

    def _decode(self, order: Tensor, sharing: bool) -> Tensor:
        """One token of each row: what is recorded. The dummy row forgets it at once."""
        count, rows = len(order), self.rows
        bounds = Bounds(count, 1, rows.tokens.shape[1] - 1)
        _, hidden = self._forward(order, rows.ones[:count], rows.lines[:count], bounds, Kind(sharing))
        self.rows.computed[self.rows.dummy].zero_()
        return hidden

    def _read(self, order: Tensor, counts: Tensor, room: Room) -> Tensor:
        """Tokens of prompts, and one token of other rows: what is recorded. The dummy row forgets them at once."""
        rows = self.rows
        bounds = Bounds(room.singles + room.tokens, room.tokens, rows.tokens.shape[1] - 1)
        _, hidden = self._forward(order, counts.int(), rows.lines[:0], bounds, Kind(singles=room.singles))
        rows.computed[rows.dummy].zero_()
        return hidden

    def _greedy(self, order: Tensor, hidden: Tensor) -> Tensor:
        """The most probable next token of each row, entered into the rows: what is recorded after `_decode`."""
        drawn: Tensor = self.draw_greedy(self.model.logits(hidden))
        self._append(order, drawn[0])
        self.rows.known[self.rows.dummy].zero_()
        return drawn

    def _random(self, order: Tensor, hidden: Tensor) -> Tensor:
        """A token of each row by its own settings, entered into the rows: the other way to go on from `_decode`."""
        assert self.sampler is not None
        drawn = self.sampler.draw_all(self.model.logits(hidden), order, self.rows.known)
        self._append(order, drawn[0])
        self.rows.known[self.rows.dummy].zero_()
        return drawn

    def _begin(self, plan: StepPlan) -> None:
        self.rows.apply(plan)
        if self.sampler is not None:
            for row in plan.released:
                self.sampler.end(row)
            self.sampler.begin(*plan.new)

    def _drawn(self, step: InFlight, order: Tensor, hidden: Tensor) -> InFlight:
        """The step with its samples, or sure to draw them once its grammars have heard of the step before."""
        before, sampler = self._last, self.sampler
        draw = partial(self._sample, step.rows, order, hidden)
        if before is None or before.settled or sampler is None or not sampler.follow(step.rows, before.rows):
            step.samples = draw()
        else:
            step.follow(before, draw)
        return step

    @torch.inference_mode()
    def _sample(self, rows: list[int], device_rows: Tensor, hidden: Tensor) -> Samples | None:
        logits = self.model.logits(hidden)
        if self.sampler is None:
            tokens = self.mesh.broadcast(torch.empty_like(device_rows), 0)
            self._append(device_rows, tokens)
            return None
        samples = self.sampler.sample(logits, rows, device_rows, self.rows.tokens, self.rows.known)
        self._append(device_rows, self.mesh.broadcast(samples.tokens, 0))
        return samples

    def _append(self, rows: Tensor, tokens: Tensor) -> None:
        """Enter one new token into each row. rows, tokens: (n,) int64."""
        self.append_tokens(rows, tokens, self.rows.tokens, self.rows.known)
