"""A model of transformers', read step by step: its modules between our products, run in one of two ways."""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.integrations.moe import _default_apply_gate
from transformers.utils import ModelOutput

from quire.base.errors import CheckpointError
from quire.checkpoint.facts import ModelFacts
from quire.layers.adopted import Experts, Heads, adopt
from quire.layers.build import Build
from quire.models.transformers.forward_pass import ForwardPass, alike, convolves, exact, name_of, probe, refusing
from quire.models.transformers.making import make_model
from quire.models.transformers.names import source
from quire.ops.registry import Choice
from quire.ops.step import StepInputs

Precision = Callable[[], AbstractContextManager[None]]
"""Settings that hold while a model runs."""


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

    def __init__(
        self, facts: ModelFacts, b: Build, config: Any, forward_pass: ForwardPass, trust_remote_code: bool
    ) -> None:
        super().__init__()
        self._forward_pass, self._pooling = forward_pass, facts.pooling
        self._probe = probe(b.device)
        self.outer = make_model(facts, b, config, forward_pass.attention, trust_remote_code)
        self._precision: Precision = exact if convolves(self.outer, b.device) else nullcontext
        self._place = _place_of_inner(self.outer, facts)
        heads, experts = _heads(self.outer, facts, self._place), _experts(self.outer, b)
        self.weights = nn.ParameterList(adopt(self.outer, b, source(self.outer, facts), heads, experts))
        self.inner: nn.Module = self.outer if self._place is None else self.outer.get_submodule(self._place)
        with torch.inference_mode():
            made = forward_pass.learn(self.inner, b)
        b.choices.append(Choice("model", forward_pass.name, self.forward, {}, capturable=forward_pass.capturable))
        self._checked = False
        if self._place is not None:
            self.given = Given(type(made), self.inner)
            setattr(self.outer, self._place, self.given)

    def forward(self, step: StepInputs) -> Tensor:
        """Hidden states of all tokens of the step, or of the last ones where it says so: (n, hidden)."""
        with self._precision():
            if not self._checked:
                self._checked = self._check()
            hidden = self._forward_pass.run(self.inner, step)
        return hidden[step.last_tokens] if step.ends else hidden

    def abridged(self) -> AbstractContextManager[None]:
        """See `Model`: what its layers are is not known here, so all are run."""
        return nullcontext()

    def logits(self, hidden: Tensor) -> Tensor:
        """(n, hidden) to (n, vocab)."""
        return self._head(hidden[None])[0]

    def scores(self, hidden: Tensor) -> Tensor:
        """(n, hidden), pooled or of single tokens, to the raw scores of the labels, (n, labels)."""
        return self._head(hidden[:, None]).view(len(hidden), -1)

    def _head(self, states: Tensor) -> Tensor:
        self.given.states = states
        with self._precision():
            logits: Tensor = self.outer(inputs_embeds=states, use_cache=False).logits
        self.given.states = states[:0]
        return logits

    @torch.inference_mode()
    def _check(self) -> bool:
        """Hold this way to run the model against the model's own, once weights are there. Raises CheckpointError.

        And the head must follow from single states. Returns False for a rehearsal, in which kernels leave zeros.
        """
        states = self._forward_pass.text(self.inner, self._probe)[0][0]
        if not states.any():
            return False
        self._forward_pass.check(self.inner, self._probe)
        if self._place is None:
            return True
        setattr(self.outer, self._place, self.inner)
        own = self._forward_pass.text(self.outer, self._probe).logits[0]
        setattr(self.outer, self._place, self.given)
        with refusing(self.outer):
            found = self._judged(states)
        if not alike(own, found):
            raise CheckpointError(f"the head of {name_of(self.outer)} needs more than the states that it is given")
        return True

    def _judged(self, states: Tensor) -> Tensor:
        """What the head makes of the states of one text."""
        if self._pooling is None:
            return self.logits(states)
        if self._pooling.head == "token":
            return self.scores(states)
        pooled = {"cls": states[:1], "last": states[-1:], "mean": states.mean(0, keepdim=True)}
        return self.scores(pooled[self._pooling.method])[0]


def _place_of_inner(outer: nn.Module, facts: ModelFacts) -> str | None:
    """Under which name a model with a head holds the one without; None where there is no head."""
    if facts.pooling is not None and facts.pooling.head == "none":
        return None
    places = [name for name, child in outer.named_children() if isinstance(child, transformers.PreTrainedModel)]
    if len(places) != 1:
        raise CheckpointError(f"{facts.path}: {name_of(outer)} is not one model with a head")
    return places[0]


def _heads(outer: Any, facts: ModelFacts, place: str | None) -> Heads:
    """What computes logits, or scores: whatever is around the inner model, and that model's own pooler."""
    if facts.pooling is None or place is None:
        return Heads(logits=[head for head in [outer.get_output_embeddings()] if head is not None])
    parts = [child for name, child in outer.get_submodule(place).named_children() if name != "pooler"]
    layers = {module for part in parts for module in part.modules()}
    return Heads(scores=[module for module in outer.modules() if module not in layers])


def _experts(model: nn.Module, b: Build) -> Experts:
    """Names of the modules of experts. Raises CheckpointError for those that cannot be served quantized."""
    found = {name: module for name, module in model.named_modules() if "_is_expert_parallel" in vars(module)}
    usual = [name for name, module in found.items() if b.checkpoint is None and _is_usual(module, b)]
    others = [name for name in found if name not in usual]
    if others and (b.quantization is not None or b.checkpoint is not None):
        raise CheckpointError(
            f"{name_of(model)} has experts that cannot be served quantized through transformers: quantized checkpoints "
            "of experts, and experts with biases or gates of their own"
        )
    for name in others:
        # Whoever counts tokens for experts then knows of one more, who is nobody.
        vars(found[name])["_is_expert_parallel"] = b.mesh.size > 1
    return Experts(usual, others)


def _is_usual(module: nn.Module, b: Build) -> bool:
    """Whether experts are down(silu(gate) * up), gates before ups, without biases."""
    said, held = vars(module), dict(module.named_parameters())
    if sorted(held) != ["down_proj", "gate_up_proj"] or any(x.dtype is not b.dtype for x in held.values()):
        return False
    kind = said.get("has_gate"), said.get("is_concatenated"), said.get("is_transposed"), said.get("has_bias")
    own = inspect.getattr_static(module, "_apply_gate", None) is not _default_apply_gate
    silu = [type(child).__name__ in ("SiLU", "SiLUActivation") for child in module.children()]
    inner = held["down_proj"].shape[2]
    return kind == (True, True, False, False) and not own and silu == [True] and inner % b.mesh.size == 0
