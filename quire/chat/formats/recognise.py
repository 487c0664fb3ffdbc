"""Which formats a model writes: told by its chat template, so that nobody has to say it; a flag overrides.

A new format is a file beside this one and its line here. Called by the server when it starts.
"""

from typing import TypeVar

from quire.base.errors import ConfigError
from quire.chat.formats import (
    deepseek,
    gemma,
    glm,
    granite,
    harmony,
    hermes,
    kimi,
    llama3_json,
    minimax,
    mistral,
    pythonic,
    qwen3_coder,
    reasoning,
)
from quire.chat.formats.base import ReasoningFormat, ToolFormat

T = TypeVar("T", ToolFormat, ReasoningFormat)

TOOLS = (
    *(harmony.FORMAT, gemma.FORMAT, gemma.FUNCTION_FORMAT, minimax.FORMAT, minimax.OLD_FORMAT, granite.FORMAT),
    *(module.FORMAT for module in (deepseek, kimi, mistral, qwen3_coder, glm, hermes, pythonic, llama3_json)),
)
"""Special before common: several templates hold `<tool_call>`."""

ALIASES = {
    "qwen": "hermes",
    "qwen3_xml": "qwen3_coder",
    "deepseek_v3": "deepseek",
    "deepseek_v31": "deepseek",
    "llama4_pythonic": "pythonic",
    "llama4_json": "llama3_json",
    "deepseek_r1": "think",
    "qwen3": "think",
    "glm45": "think",
    "kimi_k2": "think",
    "openai": "harmony",
    "gpt_oss": "harmony",
    "openai_gptoss": "harmony",
    "minimax_m1": "minimax",
    "minimax_m2": "think",
    "granite4": "hermes",
}
"""Names that vLLM's users know, where ours are others."""


def tool_format(name: str | None, template: str) -> ToolFormat | None:
    """The format of tool calls: by its `name` ("none" for no format), or else by the template's text.

    Raises:
        ConfigError: there is no format of this name.
    """
    if name is not None:
        return _named("tool_call_parser", name, TOOLS)
    return next((made for made in TOOLS if any(all(s in template for s in group) for group in made.signs)), None)


def reasoning_format(name: str | None, template: str) -> ReasoningFormat | None:
    """The format of thoughts, in the same way."""
    if name is not None:
        return _named("reasoning_parser", name, reasoning.FORMATS)
    return next((made for made in reasoning.FORMATS if all(sign in template for sign in _signs(made))), None)


def _signs(format: ReasoningFormat) -> tuple[str, ...]:
    return (format.end,) if format.channels is None else format.channels.signs[0][:2]


def _named(field: str, name: str, formats: tuple[T, ...]) -> T | None:
    if name == "none":
        return None
    wanted = {name, ALIASES.get(name, name)}
    for made in formats:
        if made.name in wanted:
            return made
    known = ", ".join([*(made.name for made in formats), "none"])
    raise ConfigError(f"{field}: {name!r} is unknown; use one of {known}, or leave it out")
