"""RoBERTa's head; its encoder is BERT's with positions that begin behind the padding token's id."""

import torch

from quire.checkpoint.facts import ModelFacts
from quire.layers.bert import bert_config, bert_encoder
from quire.layers.build import Build
from quire.layers.encoder import Encoder
from quire.layers.scores import ScoreHead, score_linear, whole_linear


def roberta(facts: ModelFacts, b: Build) -> Encoder:
    """The model of a checkpoint of RoBERTa, XLM-RoBERTa or CamemBERT."""
    return bert_encoder(facts, b, _head(facts, b))


def _head(facts: ModelFacts, b: Build) -> ScoreHead | None:
    if facts.pooling is None or facts.pooling.head == "none":
        return None
    if facts.pooling.head == "token":
        return ScoreHead(score_linear(b / "classifier", facts))
    size = bert_config(facts).hidden_size
    dense = whole_linear(b / "classifier.dense", size, size)
    return ScoreHead(score_linear(b / "classifier.out_proj", facts), dense, torch.tanh)
