"""Qwen3.5, text: gated delta nets, every fourth layer gated attention."""

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.build import Build
from quire.layers.delta_decoder import DeltaConfig, DeltaDecoder


class Qwen35(DeltaDecoder):
    """Projections of delta nets apart."""

    interleaved = False


def build(facts: ModelFacts, build: Build) -> Qwen35:
    """The model of a checkpoint."""
    return Qwen35(typed(facts.config, DeltaConfig, f"{facts.path}/config.json"), facts, build)
