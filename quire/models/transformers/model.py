"""A model of transformers', read step by step: its modules between our products, around our attention."""

import inspect
import itertools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.masking_utils import AttentionMaskInterface
from transformers.utils import ModelOutput

from quire.base.errors import CheckpointError
from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.pooling import position_offset
from quire.layers.adopted import adopt
from quire.layers.adopted_attention import Seam
from quire.layers.build import Build
from quire.models.transformers.making import make_model
from quire.models.transformers.names import source
from quire.ops.registry import Choice
from quire.ops.step import StepInputs

PROBE = 4
"""Tokens of the first run."""
WINDOWS = ("sliding_window", "local_attention")
"""Fields of configs that say how large windows are."""
_numbers = itertools.count()


class Given(nn.Module):
    """Stands in the place of the inner model while a head is computed, and answers what it was given.

    Args:
        kind: of what the inner model returns.
        inner: the model; its pooler is still called, and some heads call a model within it.
    """

    def __init__(self, kind: type[ModelOutput], inner: nn.Module) -> None:
        super().__init__()
        children = dict(inner.named_children())
        self.kind, self.pooler = kind, children.get("pooler")
        # Not as children, of which a module may not be its own.
        vars(self).update(
            (name, self) for name, child in children.items() if isinstance(child, transformers.PreTrainedModel)
        )
        self.states = torch.empty(0)

    def forward(self, *args: Any, **given: Any) -> ModelOutput:
        """The states, as the inner model would return them."""
        if self.pooler is None:
            return self.kind(last_hidden_state=self.states)
        return self.kind(last_hidden_state=self.states, pooler_output=self.pooler(self.states))


class Adopted(nn.Module):
    """A model of transformers', read step by step.

    Attributes:
        inner: from tokens to hidden states.
        outer: what is around it, with `Given` in its place: the head. The same where there is no head.
        weights: all parameters, in the same memory, as the loader wants them.
    """

    def __init__(self, facts: ModelFacts, b: Build, config: Any, trust_remote_code: bool) -> None:
        super().__init__()
        self._seam = _seam(config)
        self._pooling = facts.pooling
        self._offset = position_offset(facts.config)
        self._probe = torch.arange(PROBE, device=b.device)
        self.outer = make_model(facts, b, config, _register(self._seam), trust_remote_code)
        heads = [head for head in [self.outer.get_output_embeddings()] if head is not None]
        experts = _experts(self.outer, b)
        self.weights = nn.ParameterList(adopt(self.outer, b, source(self.outer, facts), heads, experts))
        self._place = _place_of_inner(self.outer, facts)
        self.inner: nn.Module = self.outer if self._place is None else self.outer.get_submodule(self._place)
        taken = inspect.signature(self.inner.forward).parameters
        self._takes_kinds = "token_type_ids" in taken
        if "position_ids" not in taken:
            raise CheckpointError(
                f"{facts.path}: {_name(self.inner)} takes no positions, so texts cannot share a batch"
            )
        self._learn(facts, b, config)
        self._checked = False
        if self._place is not None:
            self.given = Given(self._kind, self.inner)
            setattr(self.outer, self._place, self.given)

    def forward(self, step: StepInputs) -> Tensor:
        """Hidden states of all tokens of the step: (tokens, hidden)."""
        if not self._checked:
            self._checked = True
            self._check()
        # A mask of four dimensions counts as ready: none is made, and none is looked at.
        given = {"attention_mask": step.token_ids.new_ones(1, 1, 1, 1, dtype=torch.bool)}
        if self._takes_kinds and step.kinds is not None:
            given["token_type_ids"] = step.kinds[None]
        return self._run(step.token_ids, step.positions, step, given)

    def logits(self, hidden: Tensor) -> Tensor:
        """(n, hidden) to (n, vocab)."""
        return self._head(hidden[None])[0]

    def scores(self, hidden: Tensor) -> Tensor:
        """(n, hidden), pooled or of single tokens, to the raw scores of the labels, (n, labels)."""
        return self._head(hidden[:, None]).view(len(hidden), -1)

    def _head(self, states: Tensor) -> Tensor:
        self.given.states = states
        logits: Tensor = self.outer(inputs_embeds=states, use_cache=False).logits
        self.given.states = states[:0]
        return logits

    def _run(self, ids: Tensor, positions: Tensor, step: StepInputs | None, given: dict[str, Tensor]) -> Tensor:
        self._seam.begin(step)
        out = self.inner(input_ids=ids[None], position_ids=positions[None] + self._offset, **given)
        self._kind = type(out)
        hidden: Tensor = out[0][0]
        return hidden

    @torch.inference_mode()
    def _learn(self, facts: ModelFacts, b: Build, config: Any) -> None:
        """The first run: what calls of attention there are. Raises CheckpointError where they cannot be served."""
        name = f"{facts.path}: {_name(self.inner)}"
        with _refusing(name):
            self._run(self._probe, self._probe, None, {})
        calls, layers = self._seam.calls, int(config.get_text_config().num_hidden_layers)
        if len(calls) < layers:
            raise CheckpointError(
                f"{name} has {layers} layers, of which {len(calls)} attend in a way that can be served; others keep "
                "state of another kind or have attention of their own"
            )
        whole = facts.pooling is not None and facts.pooling.whole
        if any(call.causal is whole for call in calls):
            way = "from left to right" if whole else "both ways"
            raise CheckpointError(f"{name} reads {way}, which is not how its task reads")
        self._seam.settle(b)
        # Its code may wait for the device, so no graph records it.
        b.choices.append(Choice("model", "transformers", self.forward, {}, capturable=False))

    @torch.inference_mode()
    def _check(self) -> None:
        """Hold this way to run the model against the model's own, once weights are there. Raises CheckpointError.

        What one token does to another must go through attention: without that, two texts in one batch are what each is
        alone. And the head must follow from single states.
        """
        places = self._probe
        states = self._run(places, places, None, {})
        both = self._run(torch.cat([places.flip(0), places]), torch.cat([places, places]), None, {})
        if not _alike(states, both[PROBE:]):
            raise CheckpointError(
                f"{_name(self.inner)} brings tokens together by other means than attention and positions"
            )
        if self._place is None:
            return
        setattr(self.outer, self._place, self.inner)
        self._seam.begin(None)
        own = self.outer(input_ids=self._probe[None], position_ids=self._probe[None] + self._offset).logits[0]
        setattr(self.outer, self._place, self.given)
        with _refusing(_name(self.outer)):
            found = self._judged(states)
        if not _alike(own, found):
            raise CheckpointError(f"the head of {_name(self.outer)} needs more than the states that it is given")

    def _judged(self, states: Tensor) -> Tensor:
        """What the head makes of the states of one text."""
        if self._pooling is None:
            return self.logits(states)
        if self._pooling.head == "token":
            return self.scores(states)
        pooled = {"cls": states[:1], "last": states[-1:], "mean": states.mean(0, keepdim=True)}
        return self.scores(pooled[self._pooling.method])[0]


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Whatever goes wrong while the library's code is tried is why the model is refused."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{name} cannot be served from pages: {error}") from None
    except Exception as error:
        raise CheckpointError(f"{name} cannot be served from pages: {error!r}") from error


def _place_of_inner(outer: nn.Module, facts: ModelFacts) -> str | None:
    """Under which name a model with a head holds the one without; None where there is no head."""
    if facts.pooling is not None and facts.pooling.head == "none":
        return None
    places = [name for name, child in outer.named_children() if isinstance(child, transformers.PreTrainedModel)]
    if len(places) != 1:
        raise CheckpointError(f"{facts.path}: {_name(outer)} is not one model with a head")
    return places[0]


def _experts(model: nn.Module, b: Build) -> list[str]:
    """Names of the modules whose experts can be dealt out. Raises CheckpointError for a model that is quantized."""
    found = {name: module for name, module in model.named_modules() if "_is_expert_parallel" in vars(module)}
    if found and (b.quantization is not None or b.checkpoint is not None):
        raise CheckpointError(f"{_name(model)} has experts, which cannot be served quantized through transformers")
    for module in found.values():
        # Whoever counts tokens for experts then knows of one more, who is nobody.
        vars(module)["_is_expert_parallel"] = b.mesh.size > 1
    return list(found)


def _alike(first: Tensor, second: Tensor) -> bool:
    """Equal but for what rounding does; NaN, which damaged weights give, is not its business."""
    return not bool((first.float() - second.float()).abs().max() > 0.05 * first.float().abs().max())


def _name(model: nn.Module) -> str:
    return f"transformers' {type(model).__name__}"


def _seam(config: Any) -> Seam:
    fields = config.get_text_config().to_dict()
    sizes = [fields[name] for name in WINDOWS if fields.get(name) is not None]
    return Seam(sizes, fields.get("attention_chunk_size"))


def _register(seam: Seam) -> str:
    """Let transformers call `seam`; returns the name by which it does. Nothing there keeps the seam alive."""
    name = f"quire-{next(_numbers)}"
    transformers.AttentionInterface.register(name, _weakly(seam.attend))
    AttentionMaskInterface.register(name, _weakly(seam.mask))
    return name


def _weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    held = weakref.WeakMethod(method)

    def call(*args: Any, **given: Any) -> Any:
        found = held()
        assert found is not None, "a model is called by its owner alone"
        return found(*args, **given)

    return call
