"""Attention of a layer behind which only each sequence's last token is wanted: the last layer of a step with prompts.

Keys and values of all tokens enter their pages; queries of the others, and whatever would come of them, are left out.
Called by the blocks.
"""

from dataclasses import replace

import torch
from torch import Tensor

from quire.layers.attention import Attention
from quire.layers.build import Build
from quire.ops.attention import attend, paged_attention, prepare
from quire.ops.step import StepInputs

REACH = 4
"""Tokens of the longest sequence for each token of a step, at most. Where sequences are longer than that, those that
compute one token are better off in `Attention.mix`, which cuts them into parts and reads common beginnings once."""


class LastTokens:
    """The other way to compute what `Attention.mix` does; see `last_tokens` for where there is one."""

    def __init__(self, b: Build, attention: Attention) -> None:
        self._attention = attention
        self._prepare = b.op(prepare, attention.spec)
        self._attend = b.op(paged_attention, replace(attention.spec, step="decode"))

    def pays(self, step: StepInputs) -> bool:
        """Whether a step is better computed this way. Recorded ones are not: their bound is the model's own length."""
        return step.max_seq <= REACH * len(step.positions)

    def mix(self, qkv: Tensor, step: StepInputs) -> Tensor:
        """As `Attention.mix`, for the last token of each sequence: (sequences or `step.ends`, hidden)."""
        layer, rows, sequences = self._attention, step.last_tokens, len(step.seq_lens)
        qkv, gate = layer.heads_of(qkv, step)
        pages, sinks = layer.state.pages, () if layer.sinks is None else (layer.sinks,)
        q = self._prepare(qkv, layer.head_weights, pages, step, layer.spec)[rows[:sequences]]
        mixed = self._attend(q, pages, step.last(), layer.spec, *sinks).flatten(1)
        mixed = torch.nn.functional.pad(mixed, (0, 0, 0, len(rows) - sequences))
        return layer.out.forward(mixed if gate is None else mixed * torch.sigmoid(gate[rows]))


def last_tokens(b: Build, attention: Attention) -> LastTokens | None:
    """The other way, or None where `Attention.mix` itself is better or must be used."""
    spec = replace(attention.spec, step="decode")
    block, half = (b.choose(op, spec) for op in (attend, paged_attention))
    # Halves of a lesser provider may take more time than is saved, and memory that nobody reckons with.
    if b.deterministic or len(block.refused) < len(half.refused):
        return None
    return LastTokens(b, attention)
