"""ModernBERT, GTE-ModernBERT: norms before the blocks, rotated heads, two of three layers see only what is near."""

from typing import Literal

from torch import Tensor, nn

from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import typed
from quire.checkpoint.rope import RopeFacts, rope_facts
from quire.layers.build import Build
from quire.layers.decoder import Count, Depth, Epsilon
from quire.layers.embedding import Embedding
from quire.layers.encoder import Encoder, EncoderConfig, GatedParts, GatedUnit, TextEmbeddings, activation_at
from quire.layers.norm import LayerNorm
from quire.layers.ragged import RaggedAttention, RaggedPlan
from quire.layers.scores import ScoreHead, score_linear, whole_linear
from quire.ops.step import StepInputs

TASKS = ("embed", "token_embed", "score", "classify", "token_classify")
THETAS = {"full_attention": 160_000.0, "sliding_attention": 10_000.0}
LayerType = Literal["full_attention", "sliding_attention"]


class ModernBertConfig(EncoderConfig, frozen=True, kw_only=True):
    """Fields of config.json that ModernBERT adds."""

    hidden_activation: Literal["gelu"] = "gelu"
    classifier_activation: Literal["gelu"] = "gelu"
    norm_eps: Epsilon = 1e-5
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    classifier_bias: bool = False
    local_attention: Count = 128
    global_attn_every_n_layers: Depth = 3
    layer_types: list[LayerType] | None = None
    global_rope_theta: float = THETAS["full_attention"]
    local_rope_theta: float = THETAS["sliding_attention"]

    def type_of(self, index: int) -> LayerType:
        """Whether layer `index` sees everything."""
        if self.layer_types is not None:
            return self.layer_types[index]
        return "sliding_attention" if index % self.global_attn_every_n_layers else "full_attention"


class _Layer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); the first layer's input is normed already."""

    def __init__(self, b: Build, c: ModernBertConfig, facts: ModelFacts, index: int) -> None:
        super().__init__()
        self.mesh = b.mesh
        plan = RaggedPlan(
            hidden=c.hidden_size,
            heads=c.num_attention_heads,
            rope=_rope(facts, c, c.type_of(index)),
            reach=None if c.type_of(index) == "full_attention" else c.local_attention // 2,
            qkv_bias=c.attention_bias,
            out_bias=c.attention_bias,
            names=("Wqkv", "Wqkv", "Wqkv"),
            out="Wo",
        )
        self.before_attention = norm_at(b / "attn_norm", c) if index else None
        self.attention = RaggedAttention(b / "attn", plan)
        self.before_mlp = norm_at(b / "mlp_norm", c)
        parts = GatedParts(("Wi", "Wi", "Wo"), (c.mlp_bias, c.mlp_bias))
        self.mlp = GatedUnit(b / "mlp", c.hidden_size, c.intermediate_size, c.hidden_activation, parts)

    def forward(self, x: Tensor, step: StepInputs) -> Tensor:
        """(tokens, hidden) after both blocks."""
        normed = x if self.before_attention is None else self.before_attention.forward(x)
        x = x + self.mesh.all_reduce(self.attention.forward(normed, step))
        return x + self.mesh.all_reduce(self.mlp.forward(self.before_mlp.forward(x)))


def norm_at(b: Build, c: ModernBertConfig) -> LayerNorm:
    """A norm over the hidden size."""
    return LayerNorm(b, c.hidden_size, c.norm_eps, bias=c.norm_bias)


def _rope(facts: ModelFacts, c: ModernBertConfig, layer_type: LayerType) -> RopeFacts:
    if facts.config.get("rope_parameters"):
        return rope_facts(facts.config, layer_type)
    theta = c.global_rope_theta if layer_type == "full_attention" else c.local_rope_theta
    return RopeFacts(rope_theta=theta, max_positions=facts.context_len)


def _head(facts: ModelFacts, b: Build, c: ModernBertConfig) -> ScoreHead | None:
    if facts.pooling is None or facts.pooling.head == "none":
        return None
    dense = whole_linear(b / "head.dense", c.hidden_size, c.hidden_size, c.classifier_bias)
    scores = score_linear(b / "classifier", facts)
    return ScoreHead(scores, dense, activation_at(b, c.classifier_activation), norm_at(b / "head.norm", c))


def build(facts: ModelFacts, build: Build) -> Encoder:
    """The model of a checkpoint."""
    c, at = typed(facts.config, ModernBertConfig, f"{facts.path}/config.json"), build / "model"
    words = Embedding(at / "embeddings.tok_embeddings", c.vocab_size, c.hidden_size)
    embeddings = TextEmbeddings(words, None, None, norm_at(at / "embeddings.norm", c))
    layers = [_Layer(at / f"layers.{i}", c, facts, i) for i in range(c.num_hidden_layers)]
    return Encoder(embeddings, layers, _head(facts, build, c), norm_at(at / "final_norm", c))
