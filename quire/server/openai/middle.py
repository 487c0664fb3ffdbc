"""`suffix`: a completion that goes in the middle. Models that were trained for it have tokens that say so.

How a model wants it is told by its tokenizer alone. What the user's texts spell stays text.
"""

from dataclasses import dataclass

from quire.base.errors import RequestError
from quire.server.service import Service

BEFORE, AFTER = "before", "after"


@dataclass(frozen=True, slots=True)
class Middle:
    """How a family writes it.

    Attributes:
        parts: markers, and where the texts go.
        ends: further tokens that end the middle, where the tokenizer has them.
    """

    parts: tuple[str, ...]
    ends: tuple[str, ...] = ()


_REPOSITORY = ("<|endoftext|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|file_separator|>")
STYLES = (
    Middle(("<|fim_prefix|>", BEFORE, "<|fim_suffix|>", AFTER, "<|fim_middle|>"), _REPOSITORY),
    Middle(
        ("<fim_prefix>", BEFORE, "<fim_suffix>", AFTER, "<fim_middle>"),
        ("<|endoftext|>", "<fim_pad>", "<filename>", "<reponame>", "<file_sep>", "<repo_name>"),
    ),
    Middle(("<｜fim▁begin｜>", BEFORE, "<｜fim▁hole｜>", AFTER, "<｜fim▁end｜>")),
    Middle(("▁<PRE>", BEFORE, "▁<SUF>", AFTER, "▁<MID>"), ("▁<EOT>",)),
    Middle(("<[fim-suffix]>", AFTER, "<[fim-prefix]>", BEFORE, "<[fim-middle]>")),
    Middle(("[SUFFIX]", AFTER, "[PREFIX]", BEFORE), ()),
)
"""Qwen and CodeGemma; StarCoder, Granite and SantaCoder; DeepSeek; Code Llama; Seed; Codestral."""


def middle_prompt(
    before: list[int], after: list[int], service: Service, *, add_special_tokens: bool
) -> tuple[list[int], list[int]]:
    """A prompt for the text between two others.

    Args:
        before: token ids of what comes before it.
        after: token ids of what comes after it.
        add_special_tokens: whether the prompt begins as the tokenizer begins texts.

    Returns:
        Its token ids, and tokens that end the answer.

    Raises:
        RequestError: the model was not made for it.
    """
    tokenizer = service.engine.tokenizer
    style = next(
        (style for style in STYLES if all(_token(service, part) for part in style.parts if part not in _TEXTS)), None
    )
    if style is None:
        raise RequestError(
            "suffix is not supported by this model: its tokenizer has no tokens for filling in the middle.",
            "suffix",
            "unsupported_parameter",
        )
    texts = {BEFORE: before, AFTER: after}
    ids = tokenizer.encode("", add_special_tokens=True) if add_special_tokens else []
    for part in style.parts:
        ids = ids + (texts[part] if part in texts else _token(service, part))
    markers = [part for part in style.parts if part not in texts]
    return ids, sorted({id for text in (*markers, *style.ends) for id in _token(service, text)})


_TEXTS = (BEFORE, AFTER)


def _token(service: Service, text: str) -> list[int]:
    """The id of a text that is one special token; none for any other."""
    tokenizer = service.engine.tokenizer
    ids = tokenizer.encode(text, add_special_tokens=False)
    return ids if len(ids) == 1 and (ids[0] in tokenizer.special_ids or len(text) > 4) else []
