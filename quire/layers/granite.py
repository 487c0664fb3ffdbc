"""What Granite's generations share: four multipliers, of embeddings, of scores, of what each block adds, of logits."""

from dataclasses import replace
from typing import Literal

from torch import Tensor

from quire.layers.attention import AttentionPlan
from quire.layers.decoder import Cap, Decoder, DecoderConfig
from quire.ops.step import StepInputs


class MultipliedConfig(DecoderConfig, frozen=True, kw_only=True):
    """Fields of config.json that both add; `residual_multiplier` is for the blocks, which a model file makes."""

    hidden_act: Literal["silu"] = "silu"
    attention_bias: bool = False
    embedding_multiplier: float = 1.0
    attention_multiplier: Cap = 1.0
    residual_multiplier: float = 1.0
    logits_scaling: Cap = 1.0


class MultipliedDecoder(Decoder):
    """The multipliers."""

    config: MultipliedConfig

    def attention(self, index: int) -> AttentionPlan:
        """With a scale of its own."""
        c = self.config
        bias = c.attention_bias
        return replace(super().attention(index), scale=c.attention_multiplier, qkv_bias=bias, out_bias=bias)

    def embed(self, step: StepInputs) -> Tensor:
        """Multiplied rows of the table."""
        return super().embed(step) * self.config.embedding_multiplier

    def logits(self, hidden: Tensor) -> Tensor:
        """(n, hidden) to (n, vocab), divided."""
        return self.head.forward(hidden) / self.config.logits_scaling
