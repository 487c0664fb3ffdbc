"""RoBERTa: BERT with positions that begin behind the padding token's id, and a head of its own."""

from quire.checkpoint.facts import ModelFacts
from quire.layers.build import Build
from quire.layers.encoder import Encoder
from quire.layers.roberta import roberta

TASKS = ("embed", "token_embed", "score", "classify", "token_classify")


def build(facts: ModelFacts, build: Build) -> Encoder:
    """The model of a checkpoint."""
    return roberta(facts, build)
