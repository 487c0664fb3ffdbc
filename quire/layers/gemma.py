"""What all Gemmas share: norms that apply 1 + weight, scaled embeddings, a feed-forward part gated by GELU."""

from torch import Tensor

from quire.checkpoint.facts import ModelFacts
from quire.layers.attention import Attention
from quire.layers.blocks import Sandwich
from quire.layers.build import Build
from quire.layers.decoder import Decoder, DecoderConfig
from quire.layers.mlp import GatedMLP
from quire.ops.step import StepInputs


class GemmaDecoder(Decoder):
    """A decoder in the way of Gemma 1. Checkpoints that hold whole weights of norms say so by `norm_offset`."""

    def __init__(self, config: DecoderConfig, facts: ModelFacts, b: Build) -> None:
        self.norm_offset = float(facts.config.get("norm_offset", 1.0))
        super().__init__(config, facts, b)

    def mlp(self, b: Build) -> GatedMLP:
        """Gated by GELU."""
        return GatedMLP(b, self.config.hidden_size, self.config.intermediate_size, activation="gelu_tanh")

    def embed(self, step: StepInputs) -> Tensor:
        """Rows of the table times the square root of the hidden size, rounded to the model's dtype as in training."""
        rows = super().embed(step)
        return rows * rows.new_tensor(self.config.hidden_size**0.5)


class SandwichDecoder(GemmaDecoder):
    """With norms before and after each part of a layer, as from Gemma 2 on."""

    def layer(self, b: Build, index: int) -> Sandwich:
        """Attention and feed-forward, each between two norms."""
        norms = (
            self.norm_at(b / "input_layernorm"),
            self.norm_at(b / "post_attention_layernorm"),
            self.norm_at(b / "pre_feedforward_layernorm"),
            self.norm_at(b / "post_feedforward_layernorm"),
        )
        return Sandwich(b, norms, Attention(b / "self_attn", self.attention(index)), self.mlp(b / "mlp"))
