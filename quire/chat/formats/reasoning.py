"""Reasoning: what families put around their thoughts. Data only; `StreamSplitter` reads it."""

from quire.chat.formats import harmony
from quire.chat.formats.base import ReasoningFormat

HARMONY = ReasoningFormat(
    "harmony",
    f"{harmony.CHANNEL}analysis{harmony.MESSAGE}",
    harmony.END,
    after=f"{harmony.START}assistant",
    lead=f"{harmony.CHANNEL}final{harmony.MESSAGE}",
    channels=harmony.FORMAT,
)

FORMATS = (
    HARMONY,
    ReasoningFormat("gemma4", "<|channel>thought\n", "<channel|>"),
    ReasoningFormat("granite", "Here is my thought process:", "Here is my response:"),
    ReasoningFormat("mistral", "[THINK]", "[/THINK]"),
    ReasoningFormat("seed_oss", "<seed:think>", "</seed:think>"),
    ReasoningFormat("think", "<think>", "</think>"),
)
"""Special before common. A template shows a format by the end of its thoughts, or by the channels that it has."""
