"""Reasoning: what families put around their thoughts. Data only; `StreamSplitter` reads it."""

from quire.chat.formats.base import ReasoningFormat

FORMATS = (
    ReasoningFormat("think", "<think>", "</think>"),
    ReasoningFormat("mistral", "[THINK]", "[/THINK]"),
    ReasoningFormat("seed_oss", "<seed:think>", "</seed:think>"),
)
