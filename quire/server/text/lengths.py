"""How much text is taken at all: more than any context holds is refused wherever it is met first."""

from collections.abc import Mapping

from quire.base.errors import RequestError
from quire.chat.messages import check_count

MAX_TEXT_CHARS = 8_000_000


def check_length(chars: int, param: str) -> None:
    """Refuse more text than any context holds. Raises RequestError."""
    if chars > MAX_TEXT_CHARS:
        raise RequestError(f"{param} holds more than {MAX_TEXT_CHARS} characters.", param, "context_length_exceeded")


def check_body(body: Mapping[str, object]) -> None:
    """Refuse too many messages and too much text where a body is parsed, so that nobody else is held up by them.

    What is not as it should be passes: endpoints look at everything themselves. Raises RequestError.
    """
    for name in ("prompt", "input", "suffix"):
        value = body.get(name)
        if isinstance(value, str):
            check_length(len(value), name)
    messages = body.get("messages")
    check_count(messages)
    if isinstance(messages, list):
        contents = [message.get("content") for message in messages if isinstance(message, dict)]
        check_length(sum(len(content) for content in contents if isinstance(content, str)), "messages")
