"""What runs before an engine is ready: the largest step, to measure its memory, what compiles all kernels, recordings.

`WarmUp` is what the runner asks of steps of any kind; `GenerationWarmUp` serves it for those that generate.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Protocol

import msgspec
import torch

from quire.config.spec import RunSpec
from quire.messages.params import SamplingParams
from quire.messages.plan import Grant, NewRow, StepPlan, StepResult
from quire.messages.state import Layout
from quire.ops.attention import MANY
from quire.runner.generation import GenerationSteps
from quire.runner.graphs import DecodeGraphs, Recorder
from quire.runner.memory import Memory
from quire.runner.ragged import RaggedGraphs
from quire.runner.rows import Rows
from quire.runner.upload import upload

RECORDING_BYTES = 4 << 20
"""Reckoned on the device for one more size: for the lists of launches of all its recordings."""

DRAWS = (
    SamplingParams(temperature=0.0),
    # The most probable of edited logits, which are float32 whatever the model's are.
    SamplingParams(temperature=0.0, repetition_penalty=1.1),
    SamplingParams(temperature=0.9, top_p=0.9, top_k=50, min_p=0.01),
    SamplingParams(
        temperature=0.7,
        top_k=5,
        top_p=0.9,
        repetition_penalty=1.1,
        logit_bias={0: 0.0},
        min_tokens=1,
        stop_token_ids=[0],
        logprobs=1,
    ),
)
"""Ways to draw a token that together take every kernel of the sampler."""

LOGIT_ROWS = (1, 2, 5, 17, 33, 65, 129)
"""Numbers of rows of which logits may be wanted outside of recordings, one for each way to compute them."""


def step_of(counts: Sequence[int], params: SamplingParams, page_sizes: Sequence[int]) -> StepPlan:
    """New sequences of so many tokens each, which all draw a token. Every page of theirs is page 1."""
    new, grants = [], []
    for row, tokens in enumerate(counts):
        pages = [[1] * -(-tokens // size) for size in page_sizes]
        new.append(NewRow(row, [0] * tokens, tokens, 0, pages, params, row, [], [], tokens + 1))
        grants.append(Grant(row, tokens, True, [[] for _ in page_sizes]))
    return StepPlan(0, [], new, grants)


def no_room(spec: RunSpec) -> str:
    """The sentence for the user when pages leave too little memory for the largest step."""
    if spec.num_pages is not None:
        pages = f"num_gpu_blocks_override={spec.num_pages}"
    elif spec.kv_cache_memory_bytes is not None:
        pages = f"kv_cache_memory_bytes={spec.kv_cache_memory_bytes}"
    else:
        pages = f"gpu_memory_utilization={spec.memory_fraction:g}"
    most = f"max_num_batched_tokens={spec.max_num_batched_tokens}"
    return f"{pages} leaves too little memory for steps of {most} tokens; lower one of the two"


def largest_step(spec: RunSpec, layout: Layout) -> StepPlan:
    """A step that takes the whole token budget and all rows, drawing in the way that needs most memory."""
    rows = min(spec.max_num_seqs, spec.max_num_batched_tokens)
    chunk = min(spec.max_num_batched_tokens - rows + 1, layout.max_model_len)
    # With tables of all kinds: a row may come to own one of the vocabulary's width for its bias, too.
    params = SamplingParams(
        temperature=1.0, top_p=0.9, repetition_penalty=1.1, logit_bias={0: 0.0}, logprobs=spec.max_logprobs
    )
    plan = step_of([chunk] + [1] * (rows - 1), params, [group.page_size for group in layout.groups])
    if rows > 1:
        # Keeps hidden states of all tokens. By a row of one token, for which nothing follows from it: to describe a
        # long prompt takes seconds on CPUs.
        plan.new[-1].params = msgspec.structs.replace(params, prompt_logprobs=0)
    return plan


def side_by_side(spec: RunSpec) -> list[int]:
    """Tokens of as many prompts as a step can have; some kernels go about many of them in another way."""
    return [2] * min(spec.max_num_seqs, spec.max_num_batched_tokens // 2)


class Launched(Protocol):
    """A step under way."""

    def wait(self) -> None:
        """Wait until it is computed."""
        ...

    def result(self) -> StepResult:
        """Wait for it, and what it brought."""
        ...


class Steps(Protocol):
    """Steps of one kind, over the rows of a rank."""

    rows: Rows

    def launch(self, plan: StepPlan) -> Launched:
        """Start one step. Returns as soon as the device has its work."""
        ...

    def apply(self, plan: StepPlan) -> None:
        """Rows that end and rows that begin."""
        ...

    def forget(self) -> None:
        """Drop what holds the steps in a circle: nothing may wait for the collector of cycles."""
        ...


class WarmUp(Protocol):
    """Steps that run before the first one counts; they leave nothing behind."""

    def run_largest(self) -> None:
        """The step that needs most memory."""
        ...

    def run_all(self) -> None:
        """Steps of all sizes and kinds."""
        ...

    def record(self) -> None:
        """Record steps where the spec asks for it and every kernel allows it."""
        ...

    def recorded_bytes(self) -> int:
        """Memory that recordings will hold."""
        ...


def run_once(steps: Steps, plan: StepPlan) -> None:
    """Run a step of new sequences, and forget them."""
    steps.launch(plan).result()
    steps.apply(StepPlan(0, list(steps.rows.host), [], []))


class GenerationWarmUp:
    """See `WarmUp`.

    Args:
        spec: everything decided.
        layout: of the pages; all that runs here reads and writes page 1.
        steps: what is warmed up.
        memory: of the device.
    """

    def __init__(self, spec: RunSpec, layout: Layout, steps: GenerationSteps, memory: Memory) -> None:
        self._spec, self._layout, self._steps, self._memory = spec, layout, steps, memory

    def run_largest(self) -> None:
        """The whole token budget, all rows, and the way of drawing that needs most memory.

        Where kernels compile, few layers are run: what one has needed the next finds again, so all need no more. Others
        run all, since how long it takes counts, too.
        """
        with self._steps.passes.model.abridged() if self._spec.warm_tokens else nullcontext():
            run_once(self._steps, largest_step(self._spec, self._layout))

    @torch.inference_mode()
    def run_all(self) -> None:
        """Steps of all sizes, all ways to draw tokens, for one row and for several, prompts beside rows that decode.

        One goes through all layers, which may keep what they make at their first step; the others through few.
        """
        self._run([1], DRAWS[0])
        with self._steps.passes.model.abridged():
            self._run_all()

    def _run_all(self) -> None:
        rows, budget = self._spec.max_num_seqs, self._spec.max_num_batched_tokens
        most = self._layout.max_model_len - 1
        for tokens in self._spec.warm_tokens:
            self._run([min(tokens, most)], DRAWS[0])
        self._make_logits()
        counts = sorted({1, min(2, rows), min(16, rows)})
        for params in DRAWS:
            for count in counts:
                self._run([1] * count, params)
        for count in counts:
            self._run([1] * (count - 1) + [min(budget - count, most, MANY)], DRAWS[0])
        self._run(side_by_side(self._spec), DRAWS[0])

    @torch.inference_mode()
    def rehearse(self) -> None:
        """The largest step, all others, and what is recorded elsewhere: all that may compile a kernel."""
        with self._steps.passes.model.abridged():
            self.run_largest()
            self._run_all()
            # What compiles longest are kernels of decode steps: they shall not be the last to be heard of.
            self._record(Recorder(self._steps.rows.device, rehearses=True), self._steps.graphs, self._steps.ragged)
        # Steps to come are not recorded ones yet: they take the kernels that these replace.
        self._steps.forget()

    @torch.inference_mode()
    def record(self) -> None:
        """Recordings hold the addresses of pages. Where kernels compile, the largest step runs before."""
        if self._spec.warm_tokens:
            # What torch keeps of its memory is enough for all steps to come: from now on no more is taken.
            self.run_largest()
        self._record(Recorder(self._steps.rows.device), self._steps.ragged, self._steps.graphs)

    @torch.inference_mode()
    def recorded_bytes(self) -> int:
        """The largest of each kind, in whose memory the others find theirs."""
        recorder, graphs, ragged = Recorder(self._steps.rows.device), self._steps.graphs, self._steps.ragged
        if not recorder.records or not self._steps.recordable:
            return 0
        before = self._memory.kept_bytes()
        ragged.record(recorder, ragged.graph_shapes[-1:])
        graphs.record(recorder, graphs.sizes[-1:])
        count = len(ragged.graph_shapes) + len(graphs.sizes)
        return self._memory.kept_bytes() - before + count * RECORDING_BYTES

    def _make_logits(self) -> None:
        passes, rows = self._steps.passes, self._steps.rows
        hidden = passes.decode(upload([rows.dummy], rows.device), False)
        for count in LOGIT_ROWS:
            passes.model.logits(hidden.expand(count, -1).contiguous())

    def _record(self, recorder: Recorder, *recordings: DecodeGraphs | RaggedGraphs) -> None:
        for some in recordings if self._steps.recordable else ():
            some.record(recorder)

    def _run(self, counts: list[int], params: SamplingParams) -> None:
        """Sequences of so many tokens each, all on one page that nobody uses yet."""
        run_once(self._steps, step_of(counts, params, [group.page_size for group in self._layout.groups]))
