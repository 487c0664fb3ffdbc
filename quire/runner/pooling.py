"""`PoolingRunner`: one rank of an engine that gives vectors instead of text. It samples and records nothing."""

from dataclasses import replace

import torch
from torch import Tensor

from quire.messages.plan import Grant, NewRow, StepPlan
from quire.messages.pooling import Pooling
from quire.messages.state import Layout
from quire.messages.validate_pooling import SAMPLING
from quire.ops.inputs import Bounds
from quire.ops.step import StepInputs
from quire.runner.pooler import PooledStep, Pooler
from quire.runner.runner import Runner
from quire.runner.upload import upload


class PoolingRunner(Runner):
    """Computes prompts to their ends and pools them; of several ranks the first one does."""

    rehearses = False

    def allocate(self, layout: Layout) -> None:
        """Take pages, if the model has any, and rows."""
        self._take_pages(layout)
        facts = self.spec.facts.pooling
        assert facts is not None, "the spec of an engine that pools says how"
        self.pooler = Pooler(facts, self.model, self.spec.max_num_seqs, self.device)

    def release(self) -> None:
        """Give back pages and rows."""
        for state in self.build.states:
            state.unbind()
        del self.rows, self.pooler

    def record(self) -> None:
        """Nothing is recorded."""

    def _warm_all(self) -> None:
        for tokens in self.spec.warm_tokens:
            count = min(tokens, self.layout.max_model_len)
            self._run_once(_step([count], [group.page_size for group in self.layout.groups]))
        self._run_once(self._largest())

    def _run_once(self, plan: StepPlan) -> None:
        self.launch(plan).result()
        self.rows.apply(StepPlan(0, list(self.rows.host), [], []))

    def _recorded_bytes(self) -> int:
        return 0

    def _largest(self) -> StepPlan:
        longest = min(self.spec.max_num_batched_tokens, self.spec.max_model_len)
        others = min(self.spec.max_num_seqs - 1, self.spec.max_num_batched_tokens - longest)
        return _step([longest] + [1] * others, [group.page_size for group in self.layout.groups])

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> PooledStep:  # type: ignore[override]
        """Start one step. Returns as soon as the device has its work; `PooledStep.result` waits for it."""
        self.rows.apply(plan)
        self.pooler.forget([*plan.released, *(new.row for new in plan.new)])
        # Those that compute one token come first, so that kernels can tell them from the others.
        grants = sorted(plan.grants, key=lambda grant: grant.tokens > 1)
        hosts = [self.rows.host[grant.row] for grant in grants]
        numbers = upload([*(g.row for g in grants), *(g.tokens for g in grants)], self.device).view(2, -1)
        order, counts = numbers[0], numbers[1].int()
        longest = max(host.computed + g.tokens for g, host in zip(grants, hosts, strict=True))
        bounds = Bounds(sum(g.tokens for g in grants), max(g.tokens for g in grants), longest)
        inputs, hidden = self._read_step(order, counts, bounds, grants)
        step = PooledStep(plan.step)
        if self.mesh.rank == 0:
            step = self.pooler.pool(plan.step, grants, hosts, hidden, inputs.query_start)
        self.rows.advance(plan)
        return step

    def _read_step(
        self, order: Tensor, counts: Tensor, bounds: Bounds, grants: list[Grant]
    ) -> tuple[StepInputs, Tensor]:
        rows = self.rows
        inputs: StepInputs = self.make_inputs(
            order, counts, order[:0], rows.tokens, rows.computed, rows.page_tables, rows.page_sizes, bounds
        )
        singles = sum(grant.tokens == 1 for grant in grants)
        inputs = replace(inputs, singles=singles, kinds=self._kinds(grants), seen=self._seen(grants))
        hidden: Tensor = self.model(inputs)
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
        return upload(kinds, self.device)

    def _seen(self, grants: list[Grant]) -> Tensor | None:
        """How many tokens at the beginning of each text others see; None where that is all."""
        hosts = [self.rows.host[grant.row].new for grant in grants]
        seen = [host.prompt_len if host.pooling is None else host.pooling.seen for host in hosts]
        if all(count >= host.prompt_len for count, host in zip(seen, hosts, strict=True)):
            return None
        return upload(seen, self.device).int()


def _step(counts: list[int], page_sizes: list[int]) -> StepPlan:
    """Texts of so many tokens each, all on one page that nobody uses."""
    new, grants = [], []
    for row, tokens in enumerate(counts):
        pages = [[1] * -(-tokens // size) for size in page_sizes]
        wanted = Pooling("embed", 1, False, "none", True, tokens, tokens)
        new.append(NewRow(row, [0] * tokens, tokens, 0, pages, SAMPLING, 0, [], [], tokens, wanted))
        grants.append(Grant(row, tokens, False, [[] for _ in page_sizes]))
    return StepPlan(0, [], new, grants)
