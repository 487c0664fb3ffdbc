"""Ministral 3: Mistral on a long yarn rope, with queries that grow with their position."""

from dataclasses import replace
from typing import Literal

from quire.base.errors import CheckpointError
from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import AttentionPlan
from quire.layers.build import Build
from quire.layers.decoder import Count, Decoder, DecoderConfig, Epsilon
from quire.layers.heads import LogScaling


class Ministral3Config(DecoderConfig, frozen=True, kw_only=True):
    """Fields of config.json that Ministral 3 adds; the growth stands among the parameters of its rope."""

    hidden_act: Literal["silu"] = "silu"
    sliding_window: Count | None = None
    head_dim: Count | None = 128
    rms_norm_eps: Epsilon = 1e-5
    num_key_value_heads: Count | None = 8
    rope_parameters: dict[str, object] | None = None
    rope_scaling: dict[str, object] | None = None

    @property
    def growth(self) -> LogScaling:
        """How queries grow. Raises CheckpointError where the config does not say it."""
        said = self.rope_parameters or self.rope_scaling or {}
        beta, original = said.get("llama_4_scaling_beta"), said.get("original_max_position_embeddings")
        if not isinstance(beta, (int, float)) or not isinstance(original, int) or original < 1:
            raise CheckpointError(
                "config.json: rope_parameters needs llama_4_scaling_beta and original_max_position_embeddings"
            )
        return LogScaling(float(beta), original)


class Ministral3(Decoder):
    """Growth, and a window where the config has one."""

    config: Ministral3Config

    def attention(self, index: int) -> AttentionPlan:
        """With growing queries."""
        return replace(super().attention(index), window=self.config.sliding_window, growth=self.config.growth)


def build(facts: ModelFacts, build: Build) -> Ministral3:
    """The model of a checkpoint."""
    return Ministral3(typed(facts.config, Ministral3Config, f"{facts.path}/config.json"), facts, build)
