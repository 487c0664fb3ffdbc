"""`GenerationSteps`: the steps of a rank that generates. A plan is applied to its rows, the model run in the way
that suits the plan (recorded or not), tokens drawn. Made by the runner when it has pages.
"""

from functools import partial

import torch

from quire.config.spec import RunSpec
from quire.messages.plan import Grant, StepPlan
from quire.ops.inputs import Bounds
from quire.parallel.mesh import Mesh
from quire.runner.graphs import DecodeGraphs, DecodeWork
from quire.runner.in_flight import Draw, InFlight
from quire.runner.loaded import Loaded
from quire.runner.passes import Kind, Passes
from quire.runner.prompt_logprobs import describe_prompts, wants_prompt_logprobs
from quire.runner.ragged import GraphShape, RaggedGraphs
from quire.runner.rows import Rows
from quire.runner.upload import upload
from quire.sampling.batch import DrawMode
from quire.sampling.sampler import Sampler, Samples
from quire.structured.store import GrammarStore


class GenerationSteps:
    """Steps of one rank.

    Attributes:
        passes: over the model.
        sampler: None on ranks that do not sample.
        graphs, ragged: recordings of decode steps, and of steps that read short prompts.
        recordable: whether every kernel of the model can be recorded.

    Args:
        spec: everything decided.
        loaded: the model, and the ops around it.
        rows: what the rank keeps of each sequence.
        mesh: this rank among those that share the model.
        grammars: for rows that follow one.
        recordable: see above.
    """

    def __init__(
        self, spec: RunSpec, loaded: Loaded, rows: Rows, mesh: Mesh, grammars: GrammarStore, recordable: bool
    ) -> None:
        self.rows, self._device, self.recordable = rows, rows.device, recordable
        self._kernels = kernels = loaded.ops.sampling
        # Every rank runs the model; rank 0 samples and tells the others.
        self.sampler: Sampler | None = None
        if mesh.rank == 0:
            # One row more than sequences have, for the dummy.
            self.sampler = Sampler(rows.dummy + 1, spec.facts.vocab_size, rows.max_len, rows.device, grammars, kernels)
        self.passes = passes = Passes(loaded, rows, mesh, self.sampler)
        draws = {DrawMode.GREEDY: passes.greedy}
        both = recordable and kernels.recordable
        if both and mesh.size == 1 and self.sampler is not None and spec.graph_rows:
            self.sampler.stay()
            draws |= {DrawMode.RANDOM: passes.random, DrawMode.EDITED: passes.edited}
        work = DecodeWork(passes.decode, draws, any(rows.lasting))
        self.graphs = DecodeGraphs(spec.graph_rows, work, rows.dummy, rows.device)
        tokens = spec.recorded_tokens(rows.max_len)
        self.ragged = RaggedGraphs(spec.graph_singles, tokens, passes.read, rows.dummy, rows.device)
        self._decoding: list[int] = []
        self._order = upload([], rows.device)
        self._last: InFlight | None = None

    def forget(self) -> None:
        """Drop what holds these steps in a circle."""
        self.graphs.forget()
        self.ragged.forget()

    def apply(self, plan: StepPlan) -> None:
        """Rows that end, rows that begin, and what else the plan changes."""
        self.rows.apply(plan)
        if self.sampler is not None:
            if plan.released:
                self.sampler.end(*plan.released)
            if plan.new:
                self.sampler.begin(*plan.new)

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> InFlight:
        """Start one step. Returns as soon as the device has its work; `InFlight.result` waits for it."""
        if self._last is not None:
            self._last.draw()
        self.apply(plan)
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
            self._decoding, self._order = rows, upload(rows, self._device)
        hidden = self.graphs.forward(self._order, self.rows.sharing)
        draw_mode = None if self.sampler is None else self.sampler.draw_mode(rows)
        if self.sampler is not None and draw_mode is not None and self.graphs.draws(draw_mode, len(rows)):
            draw: Draw = partial(self._play, self.sampler, draw_mode, rows)
        else:
            draw = partial(self.passes.sample, rows, self._order, hidden)
        return self._drawn(InFlight(plan.step, rows, sampler=self.sampler), draw)

    def _play(self, sampler: Sampler, draw_mode: DrawMode, rows: list[int]) -> Samples:
        """Tokens of the rows that `graphs.forward` was called for last."""
        errors: dict[int, str] = {}
        sampler.send_masks(rows, errors)
        return sampler.samples(rows, self.graphs.draw(draw_mode, len(rows)), errors)

    def _launch_eager(self, plan: StepPlan) -> InFlight:
        # Those that compute one token come first, so that kernels can tell them from the others.
        grants = sorted(plan.grants, key=lambda grant: grant.tokens > 1)
        lines = [i for i, g in enumerate(grants) if g.samples]
        every = wants_prompt_logprobs(self.rows, grants)
        shape = None if every else self.ragged.find(grants)
        if shape is not None:
            return self._launch_ragged(plan.step, shape, grants)
        padded = self._padded(lines)
        numbers = upload([*(g.row for g in grants), *(g.tokens for g in grants), *padded], self._device)
        order, counts, sampling = torch.split(numbers, [len(grants), len(grants), len(padded)])
        longest = max(self.rows.host[g.row].computed + g.tokens for g in grants)
        bounds = Bounds(sum(g.tokens for g in grants), max(g.tokens for g in grants), longest)
        singles = sum(g.tokens == 1 for g in grants)
        kind = Kind(self.rows.sharing, singles, every, self.graphs.room(len(grants)))
        inputs, hidden = self.passes.forward(order, counts.int(), sampling, bounds, kind)
        described = describe_prompts(self.rows, grants, hidden, self.passes.model, self._kernels)
        # Every rank takes part in making logits; the one that samples tells.
        step = InFlight(plan.step, prompt_logprobs=described if self.sampler else {}, sampler=self.sampler)
        if lines:
            step.rows = [grants[i].row for i in lines]
            at = inputs.logit_rows if every else sampling
            return self._drawn(step, partial(self.passes.sample, step.rows, order[sampling[: len(lines)]], hidden[at]))
        return step

    def _launch_ragged(self, step: int, shape: GraphShape, grants: list[Grant]) -> InFlight:
        """A recorded step with prompts; tokens are drawn outside of the recording."""
        hidden, ends = self.ragged.forward(shape, grants)
        lines = [i for i, g in enumerate(grants) if g.samples]
        if not lines:
            return InFlight(step, sampler=self.sampler)
        rows = [grants[i].row for i in lines]
        padded = self._padded([ends[i] for i in lines])
        order, at = torch.split(upload([*rows, *padded], self._device), [len(lines), len(padded)])
        draw = partial(self.passes.sample, rows, order, hidden.index_select(0, at))
        return self._drawn(InFlight(step, rows, sampler=self.sampler), draw)

    def _padded(self, lines: list[int]) -> list[int]:
        """Lines of which logits are wanted, the first of them again and again up to a number that is recorded."""
        return lines + lines[:1] * (self.graphs.room(len(lines)) - len(lines))

    def _drawn(self, step: InFlight, draw: Draw) -> InFlight:
        """The step with its samples, or sure to draw them once its grammars have heard of the step before."""
        before, sampler = self._last, self.sampler
        if before is None or before.settled or sampler is None or not sampler.follow(step.rows, before.rows):
            step.samples = draw()
        else:
            step.follow(before, torch.inference_mode()(draw))
        return step
