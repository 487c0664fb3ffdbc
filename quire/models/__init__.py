"""Model families, one file each, named as config.json's `model_type` ("_" for "-"): the file's name is the registry.

`build` is all that the runner needs. A file has a typed config, a class that says what the family does differently, and
`build(facts, build) -> Model`. Files never import each other.
"""

import importlib
import pkgutil
from dataclasses import replace
from difflib import get_close_matches
from typing import Protocol

from quire.base.errors import CheckpointError
from quire.checkpoint.facts import ModelFacts
from quire.layers.build import Build
from quire.layers.model import Model

__all__ = ["Model", "build", "supported"]


class _Family(Protocol):
    """What a file of this folder offers."""

    def build(self, facts: ModelFacts, build: Build) -> Model:
        """The model of a checkpoint."""
        ...


def supported() -> list[str]:
    """The model types that can be built."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def build(facts: ModelFacts, build: Build) -> Model:
    """The model of checkpoint `facts`, its parameters still empty.

    Raises CheckpointError for an unknown model_type or a config that does not fit.
    """
    known = supported()
    name = facts.model_type.replace("-", "_")
    if name not in known:
        close = get_close_matches(name, known, 5, 0.5)
        named = f"names close to it: {', '.join(close)}" if close else f"supported: {', '.join(known)}"
        raise CheckpointError(
            f"{facts.path}: model_type {facts.model_type!r} is not supported; {named} (all are in docs/models.md)"
        )
    family: _Family = importlib.import_module(f"{__name__}.{name}")
    return family.build(facts, replace(build, max_model_len=build.max_model_len or facts.context_len))
