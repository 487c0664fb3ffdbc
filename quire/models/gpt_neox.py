"""GPT-NeoX and Pythia: attention and feed-forward side by side, layer norms, and q, k, v woven head by head."""

from dataclasses import replace

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import Attention, AttentionPlan
from quire.layers.blocks import Parallel, PreNorm
from quire.layers.build import Build
from quire.layers.classic import ClassicConfig, ClassicDecoder
from quire.layers.decoder import Names
from quire.layers.mlp import MLP, ActivationName, MLPPlan


class GptNeoxConfig(ClassicConfig, frozen=True, kw_only=True):
    """Fields of config.json that GPT-NeoX adds."""

    hidden_act: ActivationName = "gelu"
    use_parallel_residual: bool = True
    attention_bias: bool = True


class GptNeox(ClassicDecoder):
    """Two norms before one sum."""

    config: GptNeoxConfig
    names = Names("gpt_neox", "embed_in", norm="final_layer_norm", head="embed_out")

    def layer(self, b: Build, index: int) -> Parallel | PreNorm:
        """Side by side, or one after the other if the config says so."""
        norms = self.norm_at(b / "input_layernorm"), self.norm_at(b / "post_attention_layernorm")
        attention, mlp = Attention(b / "attention", self.attention(index)), self.mlp(b / "mlp")
        kind = Parallel if self.config.use_parallel_residual else PreNorm
        return kind(b, norms, attention, mlp)

    def attention(self, index: int) -> AttentionPlan:
        """One matrix for queries, keys and values, woven."""
        bias = self.config.attention_bias
        return replace(
            super().attention(index),
            qkv_bias=bias,
            out_bias=bias,
            names=("query_key_value", "query_key_value", "query_key_value"),
            out_name="dense",
            interleaved=True,
        )

    def mlp(self, b: Build) -> MLP:
        """Up, GELU and down."""
        c = self.config
        return MLP(b, MLPPlan(c.hidden_size, c.intermediate_size, c.hidden_act, ("dense_h_to_4h", "dense_4h_to_h")))


def build(facts: ModelFacts, build: Build) -> GptNeox:
    """The model of a checkpoint."""
    return GptNeox(typed(facts.config, GptNeoxConfig, f"{facts.path}/config.json"), facts, build)
