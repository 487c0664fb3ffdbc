"""Texts of a step by themselves, with the model's own attention: slower, but nothing is asked of the model's code.

Those that are equally far and long share a run, if they hold no more tokens in all than the longest text. Encoders keep
nothing; decoders keep keys and values through the library's own interface of caches, which lie in our pages here, whole
on every rank.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer
from transformers.utils import ModelOutput

from quire.base.errors import CheckpointError, ConfigError
from quire.checkpoint.facts import ModelFacts
from quire.layers.build import Build
from quire.layers.state import LayerState
from quire.messages.state import Retention
from quire.models.transformers.forward_pass import ForwardPass, UnfitError, alike, name_of, probe, refusing, takes
from quire.ops.step import GroupInputs, StepInputs


@dataclass(frozen=True, slots=True)
class Texts:
    """Some texts of a step that are equally far and long.

    Attributes:
        rows: (texts,) of the step's sequences.
        tokens: (texts, new) indices into the step's tokens.
        past: tokens of each that were computed before.
    """

    rows: Tensor
    tokens: Tensor
    past: int


@dataclass(frozen=True, slots=True)
class Slots:
    """Where the tokens of some texts lie in the pools of a group: (texts, past) and (texts, new) each."""

    past: Tensor
    new: Tensor


class PagedLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values of some texts, (texts, heads, tokens, values) each."""

    def __init__(self, state: LayerState, slots: Slots) -> None:
        super().__init__()
        self._state, self._slots = state, slots
        self._length = slots.past.shape[1]
        self.is_initialized = True

    def get_seq_length(self) -> int:
        """Tokens of each text, with those of this step once they are entered."""
        return self._length

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **given: Any) -> tuple[Tensor, Tensor]:
        """Enter the new tokens; returns all of them."""
        slots = self._slots
        if key_states.shape[2] != slots.new.shape[1]:
            raise CheckpointError("keys of other tokens than those of the step are kept")
        self._length = slots.past.shape[1] + slots.new.shape[1]
        whole = (
            self._joined(pool.flatten(0, 1), slots.past, slots.new, x)
            for pool, x in zip(self._state.pools, (key_states, value_states), strict=True)
        )
        return next(whole), next(whole)

    @staticmethod
    def _joined(pool: Tensor, slots: Tensor, fresh: Tensor, new: Tensor) -> Tensor:
        pool[fresh] = new.transpose(1, 2).to(pool.dtype)
        return torch.cat([pool[slots].transpose(1, 2).to(new.dtype), new], dim=2)


class PerSequence(ForwardPass):
    """Texts of a step by themselves, with the model's own attention."""

    name = "apart"
    attention = "eager"

    def __init__(self, facts: ModelFacts, config: Any) -> None:
        super().__init__(facts, config)
        self._states: list[LayerState] = []
        self._room = facts.context_len
        late = None if facts.pooling is None else facts.pooling.late
        self._hides = late is not None and late.query_length is not None and not late.seen

    def text(self, inner: nn.Module, ids: Tensor) -> ModelOutput:
        """As the library runs it."""
        return self._called(inner, ids[None], torch.arange(len(ids), device=ids.device)[None], None, {})

    def learn(self, inner: nn.Module, b: Build) -> ModelOutput:
        """See `ForwardPass`."""
        ids, self._room = probe(b.device), b.max_model_len or self._room
        if self._hides and not takes(inner, "attention_mask"):
            raise UnfitError(
                f"{name_of(inner)} takes no mask, so it would see the masks that queries are filled up with"
            )
        if self.whole:
            with refusing(inner):
                return self.text(inner, ids)
        if not takes(inner, "past_key_values"):
            raise UnfitError(f"{name_of(inner)} keeps no keys and values in a cache of transformers'")
        if b.kv_dtype is not None and b.kv_dtype.itemsize == 1:
            raise ConfigError(
                f"kv_cache_dtype: {name_of(inner)} reads its pages by itself, in full precision only; leave it at auto"
            )
        cache = transformers.DynamicCache()
        with refusing(inner):
            made = self._called(inner, ids[None], ids[None], cache, {})
        layers = int(self.config.num_hidden_layers)
        kept = [layer for layer in cache.layers if type(layer) is DynamicLayer and layer.get_seq_length() == len(ids)]
        if len(kept) != len(cache.layers) or len(kept) < layers:
            raise UnfitError(f"{name_of(inner)} has {layers} layers, of which {len(kept)} keep keys and values")
        shapes = [(layer.keys.shape, layer.values.shape) for layer in kept]
        self._states = [b.state(k[1], k[3], Retention(), v[3]) for k, v in shapes]
        return made

    def run(self, inner: nn.Module, step: StepInputs) -> Tensor:
        """See `ForwardPass`."""
        parts = [(texts, self._hidden(inner, step, texts)) for texts in sharing(step, self._room)]
        out = parts[0][1].new_empty(len(step.token_ids), parts[0][1].shape[-1])
        for texts, hidden in parts:
            out[texts.tokens] = hidden
        return out

    def check(self, inner: nn.Module, ids: Tensor) -> None:
        """A text in two pieces, with a page between them, must be what it is as a whole."""
        if self.whole:
            return
        places = torch.arange(len(ids), device=ids.device)
        states = [copy(state) for state in self._states]
        for state in states:
            state.bind(*state.allocate(2, len(ids)), 0)
        pieces = []
        for some in places.tensor_split(2):
            group = GroupInputs(torch.ones_like(places[None, :1]), places + len(ids), len(ids))
            texts = Texts(places[:1], some[None], int(some[0]))
            cache = _cache(states, texts, (group,))
            pieces.append(self._called(inner, ids[None, some], some[None], cache, {})[0][0])
        if not alike(self.text(inner, ids)[0][0], torch.cat(pieces)):
            raise CheckpointError(f"{name_of(inner)} keeps more between two pieces of a text than keys and values")

    def _hidden(self, inner: nn.Module, step: StepInputs, texts: Texts) -> Tensor:
        given: dict[str, Tensor] = {}
        if step.seen is not None:
            places = torch.arange(texts.tokens.shape[1], device=texts.tokens.device)
            given["attention_mask"] = (places < step.seen[texts.rows][:, None]).long()
        if step.kinds is not None and takes(inner, "token_type_ids"):
            given["token_type_ids"] = step.kinds[texts.tokens]
        cache = None if self.whole else _cache(self._states, texts, step.groups)
        ids, positions = step.token_ids[texts.tokens], step.positions[texts.tokens]
        hidden: Tensor = self._called(inner, ids, positions, cache, given)[0]
        return hidden

    def _called(
        self, inner: nn.Module, ids: Tensor, positions: Tensor, cache: Cache | None, given: dict[str, Tensor]
    ) -> ModelOutput:
        more: dict[str, Any] = dict(given)
        if cache is not None:
            more |= {"past_key_values": cache, "use_cache": True}
        # Encoders that count from the padding token's id know that themselves.
        if not self.whole and takes(inner, "position_ids"):
            more["position_ids"] = positions + self.offset
        made: ModelOutput = inner(input_ids=ids, **more)
        return made


def _cache(states: Sequence[LayerState], texts: Texts, groups: Sequence[GroupInputs]) -> Cache:
    """Our pages, as the library looks at them. Slots are found once for all layers of a group."""
    slots = [_slots(texts, group) for group in groups]
    return Cache(layers=[PagedLayer(state, slots[state.group]) for state in states])


def _slots(texts: Texts, group: GroupInputs) -> Slots:
    places = torch.arange(texts.past, device=texts.rows.device)
    table = group.page_table[texts.rows].long()
    past = table[:, places // group.page_size] * group.page_size + places % group.page_size
    return Slots(past, group.slots[texts.tokens])


def sharing(step: StepInputs, room: int) -> Iterator[Texts]:
    """The texts of a step, those together that are equally far and long, up to `room` tokens with those before."""
    device = step.token_ids.device
    bounds, lengths = step.query_start.tolist(), step.seq_lens.tolist()
    found: dict[tuple[int, int], list[int]] = {}
    for row, length in enumerate(lengths):
        new = bounds[row + 1] - bounds[row]
        found.setdefault((length - new, new), []).append(row)
    starts = torch.tensor(bounds)
    for (past, new), rows in found.items():
        most = max(1, room // max(1, past + new))
        for first in range(0, len(rows) if new else 0, most):
            some = rows[first : first + most]
            tokens = starts[some][:, None] + torch.arange(new)
            yield Texts(torch.tensor(some, device=device), tokens.to(device), past)
