"""What Command-R's generations share: attention and feed-forward after one norm without bias, and scaled logits."""

from dataclasses import replace
from typing import Literal

from torch import Tensor

from quire.layers.attention import Attention, AttentionPlan
from quire.layers.blocks import Parallel
from quire.layers.build import Build
from quire.layers.classic import ClassicConfig, ClassicDecoder


class CommandConfig(ClassicConfig, frozen=True, kw_only=True):
    """Fields of config.json that both add."""

    hidden_act: Literal["silu"] = "silu"
    tie_word_embeddings: bool = True
    logit_scale: float = 0.0625
    attention_bias: bool = False


class CommandDecoder(ClassicDecoder):
    """Parallel blocks; rope on neighbouring values."""

    config: CommandConfig
    norm_bias = False

    def layer(self, b: Build, index: int) -> Parallel:
        """Both parts after one norm."""
        attention = Attention(b / "self_attn", self.attention(index))
        return Parallel(b, (self.norm_at(b / "input_layernorm"),), attention, self.mlp(b / "mlp"))

    def attention(self, index: int) -> AttentionPlan:
        """Neighbours rotate."""
        bias = self.config.attention_bias
        return replace(super().attention(index), neighbours=True, qkv_bias=bias, out_bias=bias)

    def logits(self, hidden: Tensor) -> Tensor:
        """(n, hidden) to (n, vocab), scaled."""
        return self.head.forward(hidden) * self.config.logit_scale
