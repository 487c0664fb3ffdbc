"""A language model without weights: its next token is a hash of everything it reads back through its pages.

Any wrong page, row, position, order or stale entry changes the output, and a step takes microseconds per sequence, so
the real scheduler, rows, pages, transport and server are tested with it. `config.json` needs `"model_type": "toy"`,
`vocab_size`, and may have `window` (a second cache group that keeps only the last tokens) and `recurrent` (another one,
of recurrent state).
"""

from contextlib import AbstractContextManager, nullcontext

import msgspec
import torch
from torch import Tensor, nn

from quire.checkpoint.facts import ModelFacts
from quire.layers.build import Build
from quire.layers.state import LayerState, RecurrentState
from quire.messages.state import Retention
from quire.ops.recurrent import visits
from quire.ops.step import StepInputs

MODULUS = 1 << 19


class ToyConfig(msgspec.Struct, frozen=True):
    """Fields of a toy config.json."""

    vocab_size: int
    window: int | None = None
    recurrent: bool = False


def weight(position: Tensor) -> Tensor:
    """What a value at `position` counts for in the hash; odd, so that no position can hide. int64 in and out."""
    return (position * 40503 + 12345) % MODULUS | 1


class Toy(nn.Module):
    """Hashes the tokens within its retention; full attention always, a window and a fold if the config has them."""

    def __init__(self, config: ToyConfig, build: Build) -> None:
        super().__init__()
        self.config = config
        windows = [None] if config.window is None else [None, config.window]
        self.states = [build.state(kv_heads=1, head_dim=1, retention=Retention(w)) for w in windows]
        self.fold = build.recurrent((1, 1), (1,)) if config.recurrent else None

    def forward(self, step: StepInputs) -> Tensor:
        """The hash at every token of the step, or at the last ones where it says so: (n, 1) float32, a token id."""
        total = torch.zeros_like(step.positions)
        for state in self.states:
            total = total + self._read(state, step)
        if self.fold is not None:
            total = total + self._folded(self.fold, step)
        if step.ends:
            total = total[step.last_tokens]
        return (total % MODULUS * 31 % self.config.vocab_size).float()[:, None]

    def abridged(self) -> AbstractContextManager[None]:
        """See `Model`: it has no layers."""
        return nullcontext()

    def logits(self, hidden: Tensor) -> Tensor:
        """(n, vocab_size) float32: 10 at the hashed token, 0 elsewhere."""
        out = torch.zeros(len(hidden), self.config.vocab_size, device=hidden.device)
        return out.scatter_(1, hidden.long(), 10.0)

    def _read(self, state: LayerState, step: StepInputs) -> Tensor:
        group = step.groups[state.group]
        state.k.view(-1)[group.slots] = (step.token_ids + 1).to(state.k.dtype)
        state.v.view(-1)[group.slots] = step.positions.to(state.v.dtype)
        slots = group.page_table.long()[:, :, None] * group.page_size + torch.arange(group.page_size)
        slots = slots.flatten(1)  # (sequences, max_len)
        values = state.k.view(-1)[slots].long() * (state.v.view(-1)[slots].long() * 7 + 3)
        summed = (values * weight(torch.arange(slots.shape[1]))).cumsum(1)
        counts = (step.query_start[1:] - step.query_start[:-1]).long()
        sequence = torch.repeat_interleave(torch.arange(len(counts)), counts)
        upto = summed[sequence, step.positions]
        window = state.spec.retention.window
        if window is None:
            return upto
        before = step.positions - window  # the last position that is out of sight
        return upto - torch.where(before < 0, 0, summed[sequence, before.clamp(min=0)])

    def _folded(self, state: RecurrentState, step: StepInputs) -> Tensor:
        total = torch.zeros_like(step.positions)
        for tokens, begin, end in visits(step, state.group):
            value = 0 if begin is None else int(state.pages.state[begin])
            for t in range(tokens.start, tokens.stop):
                value = (value * 31 + int(step.token_ids[t]) + 1) % MODULUS
                total[t] = value
            state.pages.state[end] = value
        return total


def build(facts: ModelFacts, build: Build) -> Toy:
    """The toy model of a checkpoint."""
    return Toy(msgspec.convert(facts.config, ToyConfig), build)
