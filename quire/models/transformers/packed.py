"""All texts of a step side by side in one run, with our attention in the place of the library's: what is fast.

It needs a model that calls the library's interface of attention and takes positions.
"""

import itertools
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.masking_utils import AttentionMaskInterface
from transformers.utils import ModelOutput

from quire.base.errors import CheckpointError
from quire.checkpoint.facts import ModelFacts
from quire.layers.adopted_attention import AttentionHook
from quire.layers.build import Build
from quire.models.transformers.forward_pass import ForwardPass, UnfitError, alike, name_of, probe, refusing, takes
from quire.ops.step import StepInputs

WINDOWS = ("sliding_window", "local_attention")
"""Fields of configs that say how large windows are."""
_numbers = itertools.count()


class Packed(ForwardPass):
    """All texts of a step side by side in one run, with our attention."""

    name = "packed"

    def __init__(self, facts: ModelFacts, config: Any) -> None:
        super().__init__(facts, config)
        fields = self.config.to_dict()
        sizes = [fields[name] for name in WINDOWS if fields.get(name) is not None]
        self._hook = AttentionHook(sizes, fields.get("attention_chunk_size"))
        self.attention = _register(self._hook)

    def text(self, inner: nn.Module, ids: Tensor) -> ModelOutput:
        """One text whose tokens see themselves alone."""
        return self._side_by_side(inner, ids, torch.arange(len(ids), device=ids.device), None, {})

    def learn(self, inner: nn.Module, b: Build) -> ModelOutput:
        """See `ForwardPass`."""
        if not takes(inner, "position_ids"):
            raise UnfitError(f"{name_of(inner)} takes no positions, so texts cannot share a batch")
        with refusing(inner):
            made = self.text(inner, probe(b.device))
        calls, layers = self._hook.calls, int(self.config.num_hidden_layers)
        if len(calls) < layers:
            raise UnfitError(
                f"{name_of(inner)} has {layers} layers, of which {len(calls)} attend in a way that can be served; "
                "others keep state of another kind or have attention of their own"
            )
        if any(call.causal is self.whole for call in calls):
            direction = "from left to right" if self.whole else "both ways"
            raise CheckpointError(f"{name_of(inner)} reads {direction}, which is not how its task reads")
        self._hook.finish_first_run(b)
        with refusing(inner):
            self._masked(inner, probe(b.device))
        self.capturable = b.device.type == "cuda" and _waits_for_nothing(lambda: self._masked(inner, probe(b.device)))
        return made

    def run(self, inner: nn.Module, step: StepInputs) -> Tensor:
        """See `ForwardPass`."""
        given = _ready(step.token_ids)
        if step.kinds is not None and takes(inner, "token_type_ids"):
            given["token_type_ids"] = step.kinds[None]
        hidden: Tensor = self._side_by_side(inner, step.token_ids, step.positions, step, given)[0][0]
        return hidden

    def check(self, inner: nn.Module, ids: Tensor) -> None:
        """What one token does to another must go through attention: two texts in one batch are what each is alone.

        And the mask must be looked at by attention alone.
        """
        places = torch.arange(len(ids), device=ids.device)
        alone = self.text(inner, ids)[0][0]
        both = self._side_by_side(inner, torch.cat([ids.flip(0), ids]), torch.cat([places, places]), None, {})[0][0]
        if not alike(alone, both[len(ids) :]) or not alike(alone, self._masked(inner, ids)[0][0]):
            raise CheckpointError(
                f"{name_of(inner)} brings tokens together by other means than attention and positions"
            )

    def _masked(self, inner: nn.Module, ids: Tensor) -> ModelOutput:
        """One text as `text` reads it, given the mask that steps are given."""
        return self._side_by_side(inner, ids, torch.arange(len(ids), device=ids.device), None, _ready(ids))

    def _side_by_side(
        self, inner: nn.Module, ids: Tensor, positions: Tensor, step: StepInputs | None, given: dict[str, Tensor]
    ) -> ModelOutput:
        self._hook.begin(step)
        made: ModelOutput = inner(input_ids=ids[None], position_ids=positions[None] + self.offset, **given)
        return made


def _ready(ids: Tensor) -> dict[str, Tensor]:
    """A mask of four dimensions counts as ready: none is made, and none is looked at."""
    return {"attention_mask": ids.new_ones(1, 1, 1, 1, dtype=torch.bool)}


def _waits_for_nothing(run: Callable[[], object]) -> bool:
    """Whether the host can launch all of a run without hearing from the GPU, so that a graph may record it."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype", UserWarning)
        torch.cuda.set_sync_debug_mode("error")
        try:
            run()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            return False
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return True


def _register(hook: AttentionHook) -> str:
    """Let transformers call `hook`; returns the name by which it does. Nothing there keeps the hook alive."""
    name = f"quire-{next(_numbers)}"
    transformers.AttentionInterface.register(name, _weakly(hook.attend))
    AttentionMaskInterface.register(name, _weakly(hook.mask))
    return name


def _weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    held = weakref.WeakMethod(method)

    def call(*args: Any, **given: Any) -> Any:
        found = held()
        assert found is not None, "a model is called by its owner alone"
        return found(*args, **given)

    return call
