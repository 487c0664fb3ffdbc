"""Steps of a rank that gives vectors instead of text: it samples and records nothing. Made by the runner."""

from dataclasses import replace

import torch
from torch import Tensor

from quire.checkpoint.pooling import PoolerFacts
from quire.config.spec import RunSpec
from quire.messages.plan import Grant, NewRow, StepPlan
from quire.messages.pooling import Pooling
from quire.messages.state import Layout
from quire.messages.validate_pooling import SAMPLING
from quire.ops.inputs import Bounds
from quire.ops.step import StepInputs
from quire.parallel.mesh import Mesh
from quire.runner.loaded import Loaded
from quire.runner.pooler import PooledStep, Pooler
from quire.runner.rows import Rows
from quire.runner.upload import upload
from quire.runner.warm import run_once, side_by_side


class PoolingSteps:
    """Computes prompts to their ends and pools them; of several ranks the first one does.

    Args:
        facts: how the checkpoint pools.
        loaded: the model, and the ops around it.
        rows: what the rank keeps of each sequence.
        mesh: this rank among those that share the model.
    """

    def __init__(self, facts: PoolerFacts, loaded: Loaded, rows: Rows, mesh: Mesh) -> None:
        self.rows, self._device = rows, rows.device
        self._model, self._make_inputs = loaded.model, loaded.ops.make_inputs
        self._pooler: Pooler | None = None
        if mesh.rank == 0:
            self._pooler = Pooler(facts, loaded.model, rows.dummy, rows.device)

    def forget(self) -> None:
        """Nothing holds these steps in a circle."""

    def apply(self, plan: StepPlan) -> None:
        """Rows that end and rows that begin."""
        self.rows.apply(plan)
        if self._pooler is not None:
            self._pooler.forget([*plan.released, *(new.row for new in plan.new)])

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> PooledStep:
        """Start one step. Returns as soon as the device has its work; `PooledStep.result` waits for it."""
        self.apply(plan)
        # Those that compute one token come first, so that kernels can tell them from the others.
        grants = sorted(plan.grants, key=lambda grant: grant.tokens > 1)
        hosts = [self.rows.host[grant.row] for grant in grants]
        numbers = upload([*(g.row for g in grants), *(g.tokens for g in grants)], self._device).view(2, -1)
        order, counts = numbers[0], numbers[1].int()
        longest = max(host.computed + g.tokens for g, host in zip(grants, hosts, strict=True))
        bounds = Bounds(sum(g.tokens for g in grants), max(g.tokens for g in grants), longest)
        inputs, hidden = self._read_step(order, counts, bounds, grants)
        step = PooledStep(plan.step)
        if self._pooler is not None:
            step = self._pooler.pool(plan.step, grants, hosts, hidden, inputs.query_start)
        self.rows.advance(plan)
        return step

    def _read_step(
        self, order: Tensor, counts: Tensor, bounds: Bounds, grants: list[Grant]
    ) -> tuple[StepInputs, Tensor]:
        rows = self.rows
        inputs = self._make_inputs(
            order, counts, order[:0], rows.tokens, rows.computed, rows.page_tables, rows.page_sizes, bounds
        )
        singles = sum(grant.tokens == 1 for grant in grants)
        inputs = replace(inputs, singles=singles, kinds=self._kinds(grants), seen=self._seen(grants))
        hidden: Tensor = self._model(inputs)
        rows.computed.index_add_(0, order, counts)
        return inputs, hidden

    def _kinds(self, grants: list[Grant]) -> Tensor | None:
        """Which of two texts each token belongs to; None where every sequence is one text."""
        hosts = [self.rows.host[grant.row] for grant in grants]
        seconds = [h.new.pooling.second if h.new.pooling is not None else h.new.prompt_len for h in hosts]
        if all(second >= host.new.prompt_len for second, host in zip(seconds, hosts, strict=True)):
            return None
        kinds: list[int] = []
        for grant, host, second in zip(grants, hosts, seconds, strict=True):
            first = min(max(second - host.computed, 0), grant.tokens)
            kinds += [0] * first + [1] * (grant.tokens - first)
        return upload(kinds, self._device)

    def _seen(self, grants: list[Grant]) -> Tensor | None:
        """How many tokens at the beginning of each text others see; None where that is all."""
        hosts = [self.rows.host[grant.row].new for grant in grants]
        seen = [host.prompt_len if host.pooling is None else host.pooling.seen for host in hosts]
        if all(count >= host.prompt_len for count, host in zip(seen, hosts, strict=True)):
            return None
        return upload(seen, self._device).int()


class PoolingWarmUp:
    """See `WarmUp`.

    Args:
        spec: everything decided.
        layout: of the pages; all that runs here reads and writes page 1.
        steps: what is warmed up.
    """

    def __init__(self, spec: RunSpec, layout: Layout, steps: PoolingSteps) -> None:
        self._spec, self._layout, self._steps = spec, layout, steps

    def run_largest(self) -> None:
        """A text as long as can be, beside others."""
        spec = self._spec
        longest = min(spec.max_num_batched_tokens, spec.max_model_len)
        others = min(spec.max_num_seqs - 1, spec.max_num_batched_tokens - longest)
        self._run([longest] + [1] * others)

    def run_all(self) -> None:
        """Texts of all sizes."""
        for tokens in self._spec.warm_tokens:
            self._run([min(tokens, self._layout.max_model_len)])
        self._run(side_by_side(self._spec))
        self.run_largest()

    def record(self) -> None:
        """Nothing is recorded."""

    def recorded_bytes(self) -> int:
        """None."""
        return 0

    def _run(self, counts: list[int]) -> None:
        run_once(self._steps, _step(counts, [group.page_size for group in self._layout.groups]))


def _step(counts: list[int], page_sizes: list[int]) -> StepPlan:
    """Texts of so many tokens each, all on one page that nobody uses."""
    new, grants = [], []
    for row, tokens in enumerate(counts):
        pages = [[1] * -(-tokens // size) for size in page_sizes]
        wanted = Pooling("embed", 1, False, "none", True, tokens, tokens)
        new.append(NewRow(row, [0] * tokens, tokens, 0, pages, SAMPLING, 0, [], [], tokens, wanted))
        grants.append(Grant(row, tokens, False, [[] for _ in page_sizes]))
    return StepPlan(0, [], new, grants)
