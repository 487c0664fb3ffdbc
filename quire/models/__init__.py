"""Model families, one file each, named as config.json's `model_type` ("_" for "-"): the file's name is the registry.

`build` is all that the runner needs. A file has a typed config, a class that says what the family does differently, and
`build(facts, build) -> Model`. Files never import each other. The folder `transformers` is no
family: it runs what that library defines.
"""

import importlib
import pkgutil
from dataclasses import replace
from difflib import get_close_matches
from typing import Protocol

from torch import nn

from quire.base.errors import CheckpointError
from quire.checkpoint.facts import Implementation, ModelFacts
from quire.layers.build import Build
from quire.layers.model import Model
from quire.layers.scores import Projections

__all__ = ["Model", "build", "supported"]


OTHERS = "transformers"
"""The folder for models that have no file of their own."""
CLOSE = 0.5
"""How alike names are that an error lists, of 1."""


class _Family(Protocol):
    """What a file of this folder offers."""

    def build(self, facts: ModelFacts, build: Build) -> Model:
        """The model of a checkpoint."""
        ...


class _Others(Protocol):
    """What the folder for all others offers."""

    def build(self, facts: ModelFacts, build: Build, trust_remote_code: bool) -> Model:
        """The model of a checkpoint."""
        ...


def supported() -> list[str]:
    """The model types that have a file."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != OTHERS)


def is_own(facts: ModelFacts, impl: Implementation) -> bool:
    """Whether a file of this folder will build the model."""
    return impl != OTHERS and facts.model_type.replace("-", "_") in supported()


def build(facts: ModelFacts, build: Build, impl: Implementation = "auto", *, trust_remote_code: bool = False) -> Model:
    """The model of checkpoint `facts`, its parameters still empty.

    Args:
        impl: whose code runs: "quire" is a file of this folder, "transformers" that library; "auto" takes the file if
            there is one.
        trust_remote_code: whether code that came with the checkpoint may run.

    Raises CheckpointError for an unknown model_type or a config that does not fit.
    """
    known, name = supported(), facts.model_type.replace("-", "_")
    build = replace(build, max_model_len=build.max_model_len or facts.context_len)
    if is_own(facts, impl):
        family: _Family = importlib.import_module(f"{__name__}.{name}")
        return _with_projections(family.build(facts, build), facts, build)
    close = get_close_matches(name, known, 5, CLOSE)
    named = f"names close to it: {', '.join(close)}" if close else f"there are: {', '.join(known)}"
    unknown = f"{facts.path}: model_type {facts.model_type!r} has no file of quire's; {named} (all: docs/models.md)"
    if impl == "quire":
        raise CheckpointError(f"{unknown}. What transformers defines runs with --model-impl transformers")
    try:
        others: _Others = importlib.import_module(f"{__name__}.{OTHERS}")
        return _with_projections(others.build(facts, build, trust_remote_code), facts, build)
    except CheckpointError as error:
        if impl == OTHERS:
            raise
        raise CheckpointError(f"{unknown}, and it does not run through transformers: {error}") from None


def _with_projections(model: Model, facts: ModelFacts, build: Build) -> Model:
    """`model` with the products that its checkpoint has behind it; they belong to no family."""
    if facts.pooling is not None and facts.pooling.projections:
        assert isinstance(model, nn.Module)
        model.add_module("projections", Projections(build, facts.pooling.projections))
    return model
