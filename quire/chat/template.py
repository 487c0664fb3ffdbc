"""`ChatTemplate`: a conversation as token ids, by the checkpoint's Jinja template.

Equal to transformers' `apply_chat_template`, except where a user's text spells a special token: there the text stays
text. Holds nothing of a conversation, so threads share one object. Called by `LLM`, `AsyncLLM` and the server.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from quire.base.errors import RequestError
from quire.chat.content import content_form, fit_content
from quire.chat.history import fit_answer, wants_text
from quire.chat.messages import Message
from quire.chat.sandbox import Limits, Sandbox
from quire.chat.segments import Marks, Plain, Segmenter, plain, strings, unused_marks
from quire.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class _Conversation:
    """What one rendering is made of: the template's variables in plain JSON types, and whether the last message stays
    open."""

    values: dict[str, Plain]
    open_end: bool


class ChatTemplate:
    """One model's way to write a conversation.

    Args:
        source: the Jinja template.
        tokenizer: the model's.
        limits: what one rendering may take; None takes the usual ones.

    Attributes:
        source: as given.

    Raises:
        CheckpointError: the source is not valid Jinja.
    """

    def __init__(self, source: str, tokenizer: Tokenizer, limits: Limits | None = None) -> None:
        self.source = source
        self._tokenizer = tokenizer
        self._segmenter = Segmenter(tokenizer)
        self._sandbox = Sandbox(source, limits or Limits())
        self._form = content_form(self._sandbox.tree)
        self._knows_developer = "developer" in source
        self._knows_calls = "tool_calls" in source
        self._text_arguments = wants_text(source)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: list[Plain] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: object,
    ) -> list[int]:
        """Token ids of a conversation.

        Args:
            messages: `role`, `content` (a text or a list of text parts) and what else the template reads.
            tools: descriptions of tools, handed to the template.
            add_generation_prompt: end with the words that make the model answer.
            continue_final_message: leave the last message open, so that the model continues it.
            kwargs: further variables of the template (`documents`, `enable_thinking`, ...).

        Raises:
            RequestError: param "messages": the template refuses or fails (code "template_error"), or takes too long
                ("template_timeout").
        """
        talk = self._read(messages, tools, add_generation_prompt, continue_final_message, kwargs)
        if not self._segmenter.spells(talk.values):
            return self._encode(self._write(talk))
        start, end = unused_marks([self.source, *strings(talk.values)], 2)
        marks = Marks(start, end)
        marked = self._segmenter.mark(talk.values, marks)
        if not isinstance(marked, dict):
            raise TypeError("marking keeps the type of a value")
        return self._segmenter.encode(self._write(_Conversation(marked, talk.open_end)), marks)

    def render_text(
        self,
        messages: Sequence[Message],
        *,
        tools: list[Plain] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: object,
    ) -> str:
        """The conversation as text, for people: encoding it would let user text spell special tokens. See `render`."""
        return self._write(self._read(messages, tools, add_generation_prompt, continue_final_message, kwargs))

    def _read(
        self,
        messages: Sequence[Message],
        tools: list[Plain] | None,
        add_generation_prompt: bool,
        continue_final_message: bool,
        kwargs: dict[str, object],
    ) -> _Conversation:
        if not messages:
            raise RequestError("messages must hold at least one message", param="messages")
        if add_generation_prompt and continue_final_message:
            raise RequestError(
                "continue_final_message leaves the last message open and add_generation_prompt begins a new one; "
                "set add_generation_prompt to false",
                param="continue_final_message",
            )
        values: dict[str, Plain] = {
            "messages": [self._fit(message, f"messages[{index}]") for index, message in enumerate(messages)],
            "tools": plain(tools, "tools"),
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        extra = {name: plain(value, name) for name, value in kwargs.items()}
        return _Conversation({**values, **extra}, continue_final_message)

    def _fit(self, message: Message, path: str) -> Plain:
        """The message in plain types, in the roles and the form of content that the template knows."""
        if not isinstance(message, dict):
            raise RequestError(f"{path} must be a dict with 'role' and 'content'", param=path)
        copy = plain(message, path)
        if not isinstance(copy, dict) or not isinstance(copy.get("role"), str):
            raise RequestError(f"{path}.role is missing; use system, user or assistant", param=f"{path}.role")
        if copy["role"] == "developer" and not self._knows_developer:
            copy["role"] = "system"
        if copy.get("content") is None and copy.get("tool_calls") and not self._knows_calls:
            copy["content"] = ""  # such a template writes every content as it is, and no calls
        return fit_content(fit_answer(copy, as_text=self._text_arguments), self._form)

    def _write(self, talk: _Conversation) -> str:
        chars = sum(map(len, strings(talk.values)))
        if not talk.open_end:
            return self._run(talk.values, chars)
        [mark] = unused_marks([self.source, *strings(talk.values)], 1)
        text = self._run({**talk.values, "messages": _open(talk.values["messages"], mark)}, chars)
        if mark not in text:
            raise RequestError(
                "continue_final_message needs a template that writes the last message as it is; this one does not",
                param="continue_final_message",
            )
        end = text.rindex(mark)
        # A template that trims texts has taken the space behind the mark away; then it would trim the text's own too.
        return text[:end] if text.startswith(" ", end + len(mark)) else text[:end].rstrip()

    def _run(self, values: dict[str, Plain], chars: int) -> str:
        return self._sandbox.render({**self._tokenizer.special_tokens, **values}, chars)

    def _encode(self, text: str) -> list[int]:
        try:
            return self._tokenizer.encode(text, add_special_tokens=False)
        except RequestError as error:
            raise RequestError(error.message, param="messages", code=error.code) from None


def _open(messages: Plain, mark: str) -> Plain:
    """The messages with `mark` and a space behind the last text."""
    if not isinstance(messages, list) or not isinstance(messages[-1], dict):
        raise TypeError("messages are a list of dicts")
    last = messages[-1]
    content = last.get("content")
    if isinstance(content, str):
        return [*messages[:-1], {**last, "content": f"{content}{mark} "}]
    if (
        isinstance(content, list)
        and content
        and isinstance(content[-1], dict)
        and isinstance(content[-1].get("text"), str)
    ):
        part = {**content[-1], "text": f"{content[-1]['text']}{mark} "}
        return [*messages[:-1], {**last, "content": [*content[:-1], part]}]
    raise RequestError(
        "continue_final_message needs a text at the end of the last message", param="continue_final_message"
    )
