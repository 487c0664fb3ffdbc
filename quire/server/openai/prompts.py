"""The field `prompt` as token ids: its four forms, and what goes between it and a `suffix`."""

from quire.base.errors import RequestError
from quire.messages.text import Encode
from quire.server.inputs import encoded
from quire.server.openai.middle import middle_prompt
from quire.server.service import Service
from quire.server.text.lengths import check_length
from quire.server.text.texts import Fits

MAX_PROMPTS = 1024


async def read_middles(
    prompt: object, suffix: str, add_special_tokens: bool, service: Service
) -> tuple[list[list[int]], list[int]]:
    """Token ids of prompts for what goes between each prompt and `suffix`, and tokens that end it."""
    check_length(len(suffix), "suffix")
    (*befores, after), _ = await encoded([*_listed(prompt), suffix], "prompt", Encode([], plain=True), service)
    check_length(len(suffix) * len(befores), "suffix")
    made = [middle_prompt(before, after, service, add_special_tokens=add_special_tokens) for before in befores]
    return [ids for ids, _ in made], made[0][1]


async def read_prompts(
    prompt: object, add_special_tokens: bool, service: Service, fits: Fits | None = None
) -> tuple[list[list[int]], list[str | None]]:
    """Token ids of each prompt, and its text if it came as text.

    Args:
        prompt: a string, a list of strings, a list of token ids or a list of such lists.
        fits: refuses long texts that have too many tokens.
    """
    return await encoded(_listed(prompt), "prompt", Encode([], special=add_special_tokens), service, fits)


async def encode(text: str, add_special_tokens: bool, service: Service) -> list[int]:
    """`text` as token ids."""
    [ids], _ = await read_prompts(text, add_special_tokens, service)
    return ids


def _listed(prompt: object) -> list[str | list[int]]:
    """`prompt` as a list of prompts. Token ids themselves are the validator's to judge."""
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list):
        raise RequestError("prompt must be a string, a list of strings or token ids.", "prompt", "invalid_type")
    if not prompt:
        raise RequestError("prompt must hold at least one token.", "prompt", "empty_prompt")
    if type(prompt[0]) is int and len(prompt) > MAX_PROMPTS:
        # A million token ids take long to look at; the validator does so, if there is room for them at all.
        return [prompt]
    kinds = set(map(type, prompt))
    if kinds == {int}:
        return [prompt]
    if len(prompt) > MAX_PROMPTS:
        raise RequestError(f"prompt takes at most {MAX_PROMPTS} prompts.", "prompt", "too_many_prompts")
    if kinds in ({str}, {list}):
        return prompt
    raise RequestError("prompt must be all strings, all integers or all lists of integers.", "prompt", "invalid_type")
