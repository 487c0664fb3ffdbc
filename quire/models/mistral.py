"""Mistral: Llama with a sliding window in every layer, where the config has one."""

from dataclasses import replace
from typing import Literal

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import AttentionPlan
from quire.layers.build import Build
from quire.layers.decoder import Count, Decoder, DecoderConfig


class MistralConfig(DecoderConfig, frozen=True, kw_only=True):
    """Fields of config.json that Mistral adds."""

    hidden_act: Literal["silu"] = "silu"
    sliding_window: Count | None = 4096


class Mistral(Decoder):
    """A window."""

    config: MistralConfig

    def attention(self, index: int) -> AttentionPlan:
        """With the window, in every layer."""
        return replace(super().attention(index), window=self.config.sliding_window)


def build(facts: ModelFacts, build: Build) -> Mistral:
    """The model of a checkpoint."""
    return Mistral(typed(facts.config, MistralConfig, f"{facts.path}/config.json"), facts, build)
