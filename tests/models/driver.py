"""Steps a model by hand, without scheduler and runner: any mix of chunks over shuffled pages, some of them shared."""

from collections import Counter
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from quire import loading, models
from quire.checkpoint.facts import Implementation
from quire.checkpoint.read import read_facts
from quire.layers.build import Build
from quire.ops.registry import load_providers
from quire.ops.samples import step_over
from quire.ops.step import GroupInputs, StepInputs
from quire.parallel.mesh import Mesh

Made = TypeVar("Made", StepInputs, GroupInputs)


@dataclass
class Sequence:
    """Tokens of one sequence, how many are computed, its pages, and the logits of all computed tokens."""

    tokens: list[int]
    computed: int = 0
    pages: list[list[int]] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)

    def all_logits(self) -> Tensor:
        """(tokens - 1, vocab): after every token but the last, which nobody computed."""
        return torch.cat(self.logits)[: len(self.tokens) - 1]


def moved(step: Made, device: torch.device) -> Made:
    """A step, or what is within one, with its tensors on `device`."""
    values = {}
    for each in fields(step):
        value = getattr(step, each.name)
        if isinstance(value, Tensor):
            values[each.name] = value.to(device)
        elif isinstance(value, tuple):
            values[each.name] = tuple(moved(part, device) for part in value)
    return replace(step, **values)


class Driver:
    """One rank's model with its pages.

    Args:
        path: folder of the checkpoint.
        page_size: tokens per page.
        quantization: as the user gives it.
        providers: kernel folders to try before the reference.
        impl: whose code computes the model.
        device, dtype: where and in what it runs.
        seed: of random weights; None loads those of the checkpoint.
    """

    def __init__(
        self,
        path: Path,
        page_size: int,
        providers: list[str] | None = None,
        mesh: Mesh | None = None,
        max_model_len: int | None = None,
        pages: int = 64,
        quantization: str | None = None,
        impl: Implementation = "auto",
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        seed: int | None = None,
    ) -> None:
        self.page_size = page_size
        self.device = torch.device(device)
        providers = providers or []
        load_providers(providers)
        self.mesh = mesh or Mesh()
        facts = read_facts("tiny", path)
        checkpoint = loading.opened(facts, self.device, quantization, dummy=seed is not None)
        self.build = Build(
            mesh=self.mesh,
            dtype=dtype,
            device=self.device,
            quantization=checkpoint.online,
            checkpoint=checkpoint.quantized,
            providers=providers,
            max_model_len=max_model_len,
        )
        self.model = models.build(facts, self.build, impl)
        if seed is None:
            loading.load(self.model, checkpoint, self.mesh)
        else:
            loading.fill_dummy(self.model, seed, self.mesh)
        self.groups = list(dict.fromkeys(state.spec for state in self.build.states))
        self.free: list[list[int]] = []
        for index, spec in enumerate(self.groups):
            for state in self.build.states:
                if state.spec == spec:
                    first, second = state.allocate(pages, page_size)
                    # Nobody may read what nobody wrote.
                    state.bind(first.fill_(torch.nan), second.fill_(torch.nan), index)
            shuffled = torch.randperm(pages - 1, generator=torch.Generator().manual_seed(index)) + 1
            self.free.append(shuffled.tolist())
        self.users: list[Counter[int]] = [Counter() for _ in self.groups]

    def begin(self, tokens: list[int]) -> Sequence:
        """A sequence that knows `tokens` and has computed none."""
        return Sequence(list(tokens), pages=[[] for _ in self.groups])

    def fork(self, parent: Sequence, common: int, tail: list[int]) -> Sequence:
        """A sequence of `common` tokens of `parent`, whose full pages it shares, and of `tail`."""
        pages = common // self.page_size
        length = pages * self.page_size
        shared = [table[:pages] for table in parent.pages]
        for users, table in zip(self.users, shared, strict=True):
            users.update(page for page in table if page)
        return Sequence(parent.tokens[:common] + tail, length, shared, [torch.cat(parent.logits)[:length]])

    @torch.inference_mode()
    def step(self, work: list[tuple[Sequence, int]]) -> None:
        """Compute the next so many tokens of each sequence, all in one step; logits are appended to the sequences."""
        queries = [count for _, count in work]
        lengths = [sequence.computed + count for sequence, count in work]
        inputs: list[GroupInputs] = []
        for index, spec in enumerate(self.groups):
            for sequence, count in work:
                self._extend(sequence, index, sequence.computed + count)
                self._drop(sequence, index, spec.retention.first_needed(sequence.computed))
            made = step_over(queries, lengths, [sequence.pages[index] for sequence, _ in work], self.page_size)
            inputs += made.groups
        ids = [t for sequence, count in work for t in sequence.tokens[sequence.computed : sequence.computed + count]]
        step = replace(made, token_ids=torch.tensor(ids), groups=tuple(inputs))
        logits = self.model.logits(self.model(moved(step, self.device)))
        for (sequence, count), share in zip(work, logits.split(queries), strict=True):
            sequence.logits.append(share)
            sequence.computed += count

    @torch.inference_mode()
    def read(self, texts: list[list[int]]) -> list[Tensor]:
        """States of the tokens of whole texts, of a model that keeps nothing: (tokens, hidden) each."""
        lengths = [len(text) for text in texts]
        made = step_over(lengths, lengths, [[0] * length for length in lengths], self.page_size)
        step = replace(made, token_ids=torch.tensor([token for text in texts for token in text]), groups=())
        states: Tensor = self.model(moved(step, self.device))
        return list(states.split(lengths))

    def _extend(self, sequence: Sequence, group: int, length: int) -> None:
        while len(sequence.pages[group]) * self.page_size < length:
            page = self.free[group].pop()
            sequence.pages[group].append(page)
            self.users[group][page] = 1

    def _drop(self, sequence: Sequence, group: int, first_needed: int) -> None:
        """Give back pages that lie before what is needed, and spoil them as their next owner would."""
        for i in range(first_needed // self.page_size):
            page = sequence.pages[group][i]
            if page == 0:
                continue
            sequence.pages[group][i] = 0
            self.users[group][page] -= 1
            if self.users[group][page]:
                continue
            self.free[group].insert(0, page)
            for state in self.build.states:
                if state.group == group:
                    for pool in state.pools:
                        pool[page] = torch.nan

    def generate(self, texts: list[list[int]], new: int) -> list[Sequence]:
        """Greedy continuations of three texts, and of one that begins with 8 tokens of the first.

        Chunks of different sizes, a late arrival, shared pages and decoding share the steps.
        """
        # Recurrent state can be shared where a step has ended.
        first = 4 if any(spec.recurrent for spec in self.groups) else 5
        sequences = [self.begin(text) for text in texts]
        goals = [len(text) + new for text in texts]
        plan = list(zip(sequences, goals, (first, 100, 8), (0, 2, 0), strict=True))
        for step in range(1000):
            if step == 2:
                sequences.append(self.fork(sequences[0], min(8, sequences[0].computed), texts[1]))
                plan.append((sequences[-1], len(sequences[-1].tokens) + new, 4, step))
            work = [
                (s, min(len(s.tokens) - s.computed, chunk))
                for s, goal, chunk, first in plan
                if step >= first and len(s.tokens) < goal
            ]
            if not work:
                if all(len(s.tokens) == goal for s, goal, _chunk, _first in plan):
                    return sequences
                continue
            self.step(work)
            for sequence, _count in work:
                if sequence.computed == len(sequence.tokens):
                    sequence.tokens.append(self.greedy(sequence))
        raise AssertionError("a sequence does not progress")

    def greedy(self, sequence: Sequence) -> int:
        """The most probable token after what is computed."""
        return int(sequence.logits[-1][-1].argmax())
