"""BERT, MiniLM, BGE, E5, Arctic: learned positions, norms behind the blocks, two kinds of text."""

import torch

from quire.checkpoint.facts import ModelFacts
from quire.layers.bert import bert_config, bert_encoder
from quire.layers.build import Build
from quire.layers.encoder import Encoder
from quire.layers.scores import ScoreHead, score_linear, whole_linear

TASKS = ("embed", "token_embed", "score", "classify", "token_classify")


def _head(facts: ModelFacts, b: Build) -> ScoreHead | None:
    """Texts are scored behind a layer over their first token, tokens as they are."""
    if facts.pooling is None or facts.pooling.head == "none":
        return None
    scores = score_linear(b / "classifier", facts)
    if facts.pooling.head == "token":
        return ScoreHead(scores)
    size = bert_config(facts).hidden_size
    return ScoreHead(scores, whole_linear(b / "bert.pooler.dense", size, size), torch.tanh)


def build(facts: ModelFacts, build: Build) -> Encoder:
    """The model of a checkpoint."""
    return bert_encoder(facts, build, _head(facts, build))
