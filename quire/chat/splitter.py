"""`StreamSplitter`: one answer's text, as it comes, told apart into content, reasoning and calls of tools.

What is found does not depend on where the text was cut, and takes linear time. Text that only looks like a call is
content. White space around calls and thoughts belongs to nobody. One object per sequence; called by the server.
"""

from collections.abc import Callable

from quire.chat.events import CallBroken, CallStart, Content, Event, Reasoning, Tools, merge
from quire.chat.formats.base import ReasoningFormat, ToolFormat
from quire.chat.reader import Reader, beginnings, finder, held

PIECE = 1024
"""Characters that are looked at together: whatever is copied is at most this long."""


class StreamSplitter:
    """Tells one answer's text apart into content, reasoning and calls of tools, as it comes.

    Args:
        tools: how calls are written; None finds none.
        reasoning: how thoughts are written; None finds none.
        offered: the tools that the request offers.
        thinking: the prompt has opened the thoughts already.
    """

    def __init__(
        self,
        tools: ToolFormat | None = None,
        reasoning: ReasoningFormat | None = None,
        offered: Tools | None = None,
        *,
        thinking: bool = False,
    ) -> None:
        self._tools = tools
        self._reasoning = reasoning
        self._offered = offered or {}
        self._events: list[Event] = []
        self._buffer = ""
        self._space: list[str] = []
        self._skip_space = thinking
        self._index = 0
        self._reader: Reader | None = None
        self._phase: Callable[[bool], bool] = self._thoughts if thinking else self._before_thoughts

    def push(self, text: str) -> list[Event]:
        """Take more text; what is sure now."""
        if self._is_plain(text):
            said = "".join(self._space) + text
            self._space.clear()
            return [Reasoning(said) if self._phase == self._thoughts else Content(said)]
        for start in range(0, len(text), PIECE):
            self._advance(text[start : start + PIECE], final=False)
        return self._take()

    def finish(self, *, cut: bool = False) -> list[Event]:
        """The end of the text: what was held. `cut`: it ended for lack of room, so an open call stays as it is."""
        if not (cut and self._reader is not None and self._reader.open):
            self._advance("", final=True)
        self._emit("".join(self._space))
        return self._take()

    def _is_plain(self, text: str) -> bool:
        """Whether a piece can be nothing but words: most are, and every other way to find that out takes longer."""
        if self._buffer or self._skip_space or not text or text[-1].isspace():
            return False
        if self._phase == self._words:
            return self._tools is None or beginnings(self._tools.openers)[0].search(text) is None
        return self._phase == self._thoughts and self._reasoning is not None and self._reasoning.end[0] not in text

    def _take(self) -> list[Event]:
        events, self._events = self._events, []
        return merge(events) if len(events) > 1 else events

    def _advance(self, text: str, *, final: bool) -> None:
        self._buffer += text
        while self._phase(final):
            pass

    def _hold_space(self) -> None:
        body = self._buffer.lstrip()
        if len(body) < len(self._buffer):
            self._space.append(self._buffer[: len(self._buffer) - len(body)])
            self._buffer = body

    def _before_thoughts(self, final: bool) -> bool:
        """At the beginning: thoughts, or not."""
        if self._reasoning is not None:
            self._hold_space()
            start = self._reasoning.start
            if self._buffer.startswith(start):
                self._buffer = self._buffer[len(start) :]
                self._drop_space()
                self._phase = self._thoughts
                return True
            if start.startswith(self._buffer) and not final:
                return False
        self._phase = self._beginning
        return True

    def _thoughts(self, final: bool) -> bool:
        if self._reasoning is None:
            self._phase = self._beginning
            return True
        end = self._reasoning.end
        found = self._buffer.find(end)
        if found < 0:
            self._say_but(0 if final else held(self._buffer, (end,)))
            return False
        self._say(self._buffer[:found])
        self._buffer = self._buffer[found + len(end) :]
        self._drop_space()
        self._phase = self._beginning
        return True

    def _beginning(self, final: bool) -> bool:
        """The first words of the answer, which may be a call without a marker."""
        if self._tools is not None and self._tools.bare:
            self._hold_space()
            if self._buffer.startswith(self._tools.bare):
                self._open_call(self._tools)
                return True
            if not self._buffer and not final:
                return False
        self._phase = self._words
        return True

    def _words(self, final: bool) -> bool:
        if self._tools is None:
            self._say_but(0)
            return False
        found = finder(self._tools.openers).search(self._buffer)
        if found is None:
            self._say_but(0 if final else held(self._buffer, self._tools.openers))
            return False
        self._say(self._buffer[: found.start()])
        self._buffer = self._buffer[found.start() :]
        self._open_call(self._tools)
        return True

    def _open_call(self, tools: ToolFormat) -> None:
        self._reader = Reader(tools.steps(self._offered), self._index)
        self._phase = self._call

    def _call(self, final: bool) -> bool:
        reader = self._reader
        assert reader is not None
        reader.push(self._buffer, final=final)
        self._buffer = ""
        for event in reader.events:
            if isinstance(event, CallStart):
                self._drop_space()
            if isinstance(event, Content):
                self._say(event.text)
            else:
                self._events.append(event)
        reader.events.clear()
        self._index = reader.index
        if not reader.ended:
            return False
        self._buffer = reader.rest
        if reader.failed:
            self._fall_back(reader)
        self._reader = None
        self._phase = self._words
        return True

    def _fall_back(self, reader: Reader) -> None:
        """What looked like a call is content."""
        if reader.open:
            self._events.append(CallBroken(reader.index, reader.raw()))
            self._index += 1
            self._skip_space = False
        else:
            self._say(reader.raw())

    def _say_but(self, kept: int) -> None:
        """Say the buffer but for its last characters."""
        end = len(self._buffer) - kept
        self._say(self._buffer[:end])
        self._buffer = self._buffer[end:]

    def _say(self, text: str) -> None:
        """Words of this phase; white space at their end waits for what follows."""
        if self._skip_space:
            text = text.lstrip()
            self._skip_space = not text
        body = text.rstrip()
        if body:
            self._emit("".join(self._space) + body)
            self._space.clear()
        if len(body) < len(text):
            self._space.append(text[len(body) :])

    def _emit(self, text: str) -> None:
        if text:
            self._events.append(Reasoning(text) if self._phase == self._thoughts else Content(text))

    def _drop_space(self) -> None:
        self._space.clear()
        self._skip_space = True
