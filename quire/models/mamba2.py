"""Mamba 2: no attention, one recurrent state a layer; nothing but Mamba layers.

What layers add to is kept in the model's dtype, whatever `residual_in_fp32` says.
"""

from typing import Literal

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.blocks import Single
from quire.layers.build import Build
from quire.layers.decoder import Count, Decoder, DecoderConfig, Epsilon, Names
from quire.layers.mamba import Bound, Mamba, MambaPlan, step_bounds
from quire.layers.norm import Norm, RMSNorm


class Mamba2Config(DecoderConfig, frozen=True, kw_only=True):
    """Fields of config.json that Mamba 2 adds. It has neither attention nor feed-forward parts."""

    intermediate_size: Count = 1
    num_attention_heads: Count = 1
    hidden_act: Literal["silu"] = "silu"
    layer_norm_epsilon: Epsilon = 1e-5
    num_heads: Count = 128
    head_dim: Count = 64
    state_size: Count = 128
    n_groups: Count = 8
    conv_kernel: Count = 4
    use_bias: bool = False
    use_conv_bias: bool = True
    time_step_limit: tuple[Bound, Bound] | None = None


class Mamba2(Decoder):
    """Layers of one part each, under names of their own."""

    names = Names("backbone", "embeddings", norm="norm_f")
    config: Mamba2Config

    def layer(self, b: Build, index: int) -> Single:
        """A Mamba layer."""
        c = self.config
        plan = MambaPlan(
            hidden=c.hidden_size,
            heads=c.num_heads,
            groups=c.n_groups,
            head_dim=c.head_dim,
            state=c.state_size,
            width=c.conv_kernel,
            bounds=step_bounds(c.time_step_limit),
            eps=c.layer_norm_epsilon,
            bias=c.use_bias,
            conv_bias=c.use_conv_bias,
        )
        return Single(b, self.norm_at(b / "norm"), Mamba(b / "mixer", plan))

    def norm_at(self, b: Build) -> Norm:
        """With the epsilon under its other name."""
        return RMSNorm(b, self.config.hidden_size, self.config.layer_norm_epsilon)


def build(facts: ModelFacts, build: Build) -> Mamba2:
    """The model of a checkpoint."""
    return Mamba2(typed(facts.config, Mamba2Config, f"{facts.path}/config.json"), facts, build)
