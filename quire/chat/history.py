"""Earlier answers in a conversation, in the form that the model's template reads: arguments of calls, thoughts.

Clients send arguments as JSON in a text; most templates want the object, a few join the text: told by the template's
own words. Called by `ChatTemplate`; what does not fit is passed on as it is, for the template to judge.
"""

import json
import re
from typing import Any

_JOINS_TEXT = re.compile(r"\+\s*[\w.\[\]'\"]*\barguments\b['\"]?\]?\s*(?:\+|-?[%}]\})")


def wants_text(source: str) -> bool:
    """Whether a template joins arguments as a text."""
    return _JOINS_TEXT.search(source) is not None


def fit_answer(message: dict[str, Any], *, as_text: bool) -> dict[str, Any]:
    """An assistant's message with its calls' arguments and its thoughts where the template looks for them."""
    if message.get("role") != "assistant":
        return message
    fitted = dict(message)
    if isinstance(message.get("reasoning"), str) and message.get("reasoning_content") is None:
        fitted["reasoning_content"] = message["reasoning"]
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        fitted["tool_calls"] = [_fit_call(call, as_text) for call in calls]
    return fitted


def _fit_call(call: Any, as_text: bool) -> Any:
    if not isinstance(call, dict) or not isinstance(function := call.get("function"), dict):
        return call
    arguments = function.get("arguments")
    if as_text and isinstance(arguments, dict):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif not as_text and isinstance(arguments, str):
        arguments = _object(arguments)
    else:
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def _object(text: str) -> Any:
    """The object that a text spells; the text itself if it spells none."""
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return text
    return found if isinstance(found, dict) else text
