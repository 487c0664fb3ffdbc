"""Command-R and Command-R+: attention and feed-forward side by side after one norm without bias, scaled logits."""

from dataclasses import replace
from typing import Literal

from torch import Tensor

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import Attention, AttentionPlan
from quire.layers.blocks import Parallel
from quire.layers.build import Build
from quire.layers.classic import ClassicConfig, ClassicDecoder


class CohereConfig(ClassicConfig, frozen=True, kw_only=True):
    """Fields of config.json that Command-R adds."""

    hidden_act: Literal["silu"] = "silu"
    tie_word_embeddings: bool = True
    logit_scale: float = 0.0625
    attention_bias: bool = False
    use_qk_norm: bool = False


class Cohere(ClassicDecoder):
    """Parallel blocks; rope on neighbouring values; layer norms on heads in Command-R+."""

    config: CohereConfig
    norm_bias = False

    def layer(self, b: Build, index: int) -> Parallel:
        """Both parts after one norm."""
        attention = Attention(b / "self_attn", self.attention(index))
        return Parallel(b, (self.norm_at(b / "input_layernorm"),), attention, self.mlp(b / "mlp"))

    def attention(self, index: int) -> AttentionPlan:
        """Neighbours rotate."""
        c = self.config
        return replace(
            super().attention(index),
            neighbours=True,
            head_layer_norm_eps=c.layer_norm_eps if c.use_qk_norm else None,
            qkv_bias=c.attention_bias,
            out_bias=c.attention_bias,
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """(n, hidden) to (n, vocab), scaled."""
        return self.head.forward(hidden) * self.config.logit_scale


def build(facts: ModelFacts, build: Build) -> Cohere:
    """The model of a checkpoint."""
    return Cohere(typed(facts.config, CohereConfig, f"{facts.path}/config.json"), facts, build)
