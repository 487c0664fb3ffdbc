"""Command-R and Command-R+: attention and feed-forward side by side after one norm without bias, scaled logits."""

from dataclasses import replace

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.layers.attention import AttentionPlan
from quire.layers.build import Build
from quire.layers.cohere import CommandConfig, CommandDecoder


class CohereConfig(CommandConfig, frozen=True, kw_only=True):
    """Fields of config.json that Command-R adds."""

    use_qk_norm: bool = False


class Cohere(CommandDecoder):
    """Layer norms on heads in Command-R+."""

    config: CohereConfig

    def attention(self, index: int) -> AttentionPlan:
        """With norms on heads if the config says so."""
        c = self.config
        return replace(super().attention(index), head_layer_norm_eps=c.layer_norm_eps if c.use_qk_norm else None)


def build(facts: ModelFacts, build: Build) -> Cohere:
    """The model of a checkpoint."""
    return Cohere(typed(facts.config, CohereConfig, f"{facts.path}/config.json"), facts, build)
