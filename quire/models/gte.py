"""GTE (multilingual, v1.5): BERT with rotated heads and gated feed-forward layers."""

from quire.checkpoint.facts import ModelFacts
from quire.layers.build import Build
from quire.layers.encoder import Encoder
from quire.layers.rotary_encoder import RotaryNames, rotary_encoder

TASKS = ("embed", "token_embed", "score", "classify", "token_classify")

NAMES = RotaryNames(
    norm="embeddings.LayerNorm",
    layers="encoder.layer",
    attention=("attention.qkv_proj", "attention.o_proj"),
    mlp=("mlp.up_gate_proj", "mlp.up_gate_proj", "mlp.down_proj"),
    norms=("attn_ln", "mlp_ln"),
    biases=(True, True),
    up_first=True,
)


def build(facts: ModelFacts, build: Build) -> Encoder:
    """The model of a checkpoint."""
    return rotary_encoder(facts, build, NAMES)
