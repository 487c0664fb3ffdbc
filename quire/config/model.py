"""From the settings of a model to the facts of its checkpoint; whoever starts an engine comes through here."""

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.names import resolve
from quire.checkpoint.read import read_facts
from quire.config.fields import ModelConfig


def facts_of(settings: ModelConfig) -> ModelFacts:
    """The facts of the checkpoint that `settings` name, downloaded if need be. Raises CheckpointError."""
    path = resolve(settings.model, settings.revision)
    return read_facts(settings.model, path, settings.runner, settings.pooling, settings.hf_overrides)
