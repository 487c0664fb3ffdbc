"""Thoughts of a model: whether an answer begins with them, how clients turn and limit them, how many tokens they are.

`enable_thinking`, `reasoning_effort` and the like become words for the chat template, which alone knows what they do.
"""

import enum
import re

from quire.base.errors import RequestError
from quire.chat.formats.base import ReasoningFormat
from quire.server.conversation.schema import ChatRequest
from quire.server.service import Service, Tokenizer

TAIL_TOKENS = 64
"""So many tokens at the end of a prompt show whether it has opened the thoughts."""

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
MAX_BUDGET = 1_000_000
EARLY_TOKENS = 8
"""Thoughts begin within so many tokens, or there are none."""

_SWITCHES = ("enable_thinking", "thinking")


class ReasoningState(enum.Enum):
    """What a prompt says of thoughts: none are known to this model, it has begun them, ended them, or left it open."""

    NONE = 0
    OPEN = 1
    CLOSED = 2
    MAY = 3


def reasoning_state_of(service: Service, prompt: list[int]) -> ReasoningState:
    """What the end of a prompt says."""
    format = service.reasoning_format
    if format is None:
        return ReasoningState.NONE
    tail = service.engine.tokenizer.decode(prompt[-TAIL_TOKENS:], skip_special_tokens=False).rstrip()
    if format.start and tail.endswith(format.start.rstrip()):
        return ReasoningState.OPEN
    return ReasoningState.CLOSED if tail.endswith(format.end) and format.channels is None else ReasoningState.MAY


def has_switch(service: Service) -> bool:
    """Whether the template lets thoughts be turned off."""
    return _switch(service.template_source) is not None


def template_words(asked: ChatRequest, service: Service) -> dict[str, object]:
    """Words for the template; those of `chat_template_kwargs` win. Raises RequestError for what it cannot do."""
    source, on, effort = service.template_source, asked.enable_thinking, asked.reasoning_effort
    words: dict[str, object] = {}
    if effort is not None:
        if effort not in EFFORTS:
            raise RequestError(f"reasoning_effort must be one of {', '.join(EFFORTS)}.", "reasoning_effort")
        if "reasoning_effort" in source:
            words["reasoning_effort"] = effort
        elif on is None and (service.reasoning_format is not None or effort != "none"):
            on = effort != "none"
            if on and _switch(source) is None:
                raise _unserved("reasoning_effort", "this model's chat template knows no effort")
    if on is not None and (switch := _switch(source)) is not None:
        words[switch] = on
    elif on is not None and on != (service.reasoning_format is not None):
        field = "reasoning_effort" if asked.enable_thinking is None else "enable_thinking"
        raise _unserved(field, f"this model's thoughts cannot be turned {'on' if on else 'off'}")
    return {**words, **(asked.chat_template_kwargs or {})}


def budget_of(asked: ChatRequest, service: Service) -> int | None:
    """Most tokens of thoughts. Raises RequestError."""
    budget = asked.thinking_token_budget
    if budget is None:
        return None
    if not 0 <= budget <= MAX_BUDGET:
        raise RequestError(f"thinking_token_budget must be from 0 to {MAX_BUDGET}.", "thinking_token_budget")
    if service.reasoning_format is None:
        raise _unserved("thinking_token_budget", "this model is not known to think")
    return budget


class ReasoningCount:
    """Counts the tokens between the markers of thoughts, in an answer that comes in pieces.

    Args:
        format: of the thoughts.
        tokenizer: tells the markers' ids.
        thinking: what the prompt said.
    """

    def __init__(self, format: ReasoningFormat, tokenizer: Tokenizer, thinking: ReasoningState) -> None:
        self._start = tokenizer.encode(format.start, add_special_tokens=False)
        self._end = tokenizer.encode(format.end, add_special_tokens=False)
        self._inside = thinking is ReasoningState.OPEN
        self._again = format.channels is not None
        self._over = thinking in (ReasoningState.NONE, ReasoningState.CLOSED)
        self._held: list[int] = []
        self._seen = 0

    def take(self, ids: list[int]) -> int:
        """How many more tokens of thoughts there are with these; those of the markers do not count."""
        return 0 if self._over else sum(map(self._one, ids))

    def _one(self, id: int) -> int:
        if self._over:
            return 0
        self._seen += 1
        self._held = [*self._held, id][-max(len(self._start), len(self._end)) :]
        if not self._inside:
            if self._start and self._held[-len(self._start) :] == self._start:
                self._inside, self._held = True, []
            elif not self._again and self._seen >= EARLY_TOKENS + len(self._start):
                self._over = True
            return 0
        if self._held[-len(self._end) :] == self._end:
            self._inside, self._over, self._held = False, not self._again, []
            return 1 - len(self._end)
        return 1


def _switch(source: str) -> str | None:
    """The template's own name for the switch: a variable in a statement, not a field of a message."""
    return next(
        (word for word in _SWITCHES if re.search(rf"{{%[^%]*(?<![.'\"\w]){word}\b(?!['\"])", source)),
        None,
    )


def _unserved(field: str, why: str) -> RequestError:
    return RequestError(f"{field}: {why}; leave it out.", field, "unsupported_parameter")
