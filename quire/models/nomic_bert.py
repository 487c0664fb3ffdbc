"""NomicBERT (nomic-embed-text v1, v1.5): BERT with rotated heads, gated feed-forward layers, hardly any bias."""

from quire.checkpoint.facts import ModelFacts
from quire.layers.build import Build
from quire.layers.encoder import Encoder
from quire.layers.rotary_encoder import RotaryNames, rotary_encoder

TASKS = ("embed", "token_embed", "score", "classify", "token_classify")

NAMES = RotaryNames(
    norm="emb_ln",
    layers="encoder.layers",
    attention=("attn.Wqkv", "attn.out_proj"),
    mlp=("mlp.fc12", "mlp.fc11", "mlp.fc2"),
    norms=("norm1", "norm2"),
    biases=(False, False),
)


def build(facts: ModelFacts, build: Build) -> Encoder:
    """The model of a checkpoint."""
    return rotary_encoder(facts, build, NAMES)
