"""Granite 3: Llama with four multipliers: of embeddings, of scores, of what each block adds, of logits."""

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import Attention
from quire.layers.blocks import PreNorm
from quire.layers.build import Build
from quire.layers.granite import MultipliedConfig, MultipliedDecoder
from quire.layers.mlp import GatedMLP


class GraniteConfig(MultipliedConfig, frozen=True, kw_only=True):
    """Fields of config.json that Granite adds."""

    mlp_bias: bool = False


class Granite(MultipliedDecoder):
    """Biases of the feed-forward part."""

    config: GraniteConfig

    def layer(self, b: Build, index: int) -> PreNorm:
        """With what both parts add multiplied."""
        norms = self.norm_at(b / "input_layernorm"), self.norm_at(b / "post_attention_layernorm")
        attention = Attention(b / "self_attn", self.attention(index))
        return PreNorm(b, norms, attention, self.mlp(b / "mlp"), self.config.residual_multiplier)

    def mlp(self, b: Build) -> GatedMLP:
        """With or without biases."""
        return GatedMLP(b, self.config.hidden_size, self.config.intermediate_size, bias=self.config.mlp_bias)


def build(facts: ModelFacts, build: Build) -> Granite:
    """The model of a checkpoint."""
    return Granite(typed(facts.config, GraniteConfig, f"{facts.path}/config.json"), facts, build)
