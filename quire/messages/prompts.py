"""Prompts as dicts: a text, token ids, or two texts as the token ids of one. The server gives them to the engine.

What a request holds of them is in `messages/request.py`.
"""

from typing import TypedDict


class TextPrompt(TypedDict):
    """A prompt as text."""

    prompt: str


class TokensPrompt(TypedDict):
    """A prompt as token ids."""

    prompt_token_ids: list[int]


class PairPrompt(TypedDict):
    """Two texts put together: their token ids, and where those of the second begin."""

    prompt_token_ids: list[int]
    second: int
