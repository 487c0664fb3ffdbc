"""StableLM: Llama with layer norms and rope on a quarter of each head."""

from dataclasses import replace
from typing import Literal

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import Attention, AttentionPlan
from quire.layers.blocks import Parallel, PreNorm
from quire.layers.build import Build
from quire.layers.classic import ClassicConfig, ClassicDecoder


class StableLmConfig(ClassicConfig, frozen=True, kw_only=True):
    """Fields of config.json that StableLM adds. StableLM 2 12B, with its norms on heads, is refused."""

    hidden_act: Literal["silu"] = "silu"
    use_qkv_bias: bool = False
    qk_layernorm: Literal[False] = False
    use_parallel_residual: bool = False


class StableLm(ClassicDecoder):
    """Biases, and parts side by side, where the config has them."""

    config: StableLmConfig

    def layer(self, b: Build, index: int) -> Parallel | PreNorm:
        """One part after the other, or both after one norm."""
        attention, mlp = Attention(b / "self_attn", self.attention(index)), self.mlp(b / "mlp")
        first = self.norm_at(b / "input_layernorm")
        if self.config.use_parallel_residual:
            return Parallel(b, (first,), attention, mlp)
        return PreNorm(b, (first, self.norm_at(b / "post_attention_layernorm")), attention, mlp)

    def attention(self, index: int) -> AttentionPlan:
        """With or without biases."""
        return replace(super().attention(index), qkv_bias=self.config.use_qkv_bias)


def build(facts: ModelFacts, build: Build) -> StableLm:
    """The model of a checkpoint."""
    return StableLm(typed(facts.config, StableLmConfig, f"{facts.path}/config.json"), facts, build)
