"""What families from before Llama share: layer norms with biases, and a feed-forward part without a gate."""

from typing import ClassVar

from quire.layers.build import Build
from quire.layers.decoder import Decoder, DecoderConfig, Epsilon
from quire.layers.norm import LayerNorm


class ClassicConfig(DecoderConfig, frozen=True, kw_only=True):
    """Fields of config.json that such a family has."""

    layer_norm_eps: Epsilon = 1e-5

    @property
    def inner_size(self) -> int:
        """Values between the two products of a feed-forward part."""
        return self.intermediate_size or 4 * self.hidden_size


class ClassicDecoder(Decoder):
    """A decoder with layer norms."""

    config: ClassicConfig
    norm_weight: ClassVar[bool] = True
    norm_bias: ClassVar[bool] = True

    def norm_at(self, b: Build) -> LayerNorm:
        """A layer norm over the hidden size."""
        c = self.config
        return LayerNorm(b, c.hidden_size, c.layer_norm_eps, self.norm_weight, self.norm_bias)
