"""`Chunks`: what the streams of chat and of completions have in common: the head and the usage around their choices."""

import msgspec

from quire.server.conversation.schema import StreamOptions
from quire.server.generation import Usage
from quire.server.sse import event


class Chunks:
    """Renders chunks.

    Args:
        head: what every chunk says first.
        options: as asked for; whether chunks tell usage.
    """

    def __init__(self, head: dict[str, object], options: StreamOptions | None) -> None:
        self.options = options or StreamOptions()
        self._head = head
        self._usage = Usage()

    def last(self) -> bytes:
        """The chunk with usage and no choices."""
        return event(msgspec.json.encode({**self._head, "choices": [], "usage": self._usage.as_json()}))

    def _chunk_of(self, choice: dict[str, object]) -> bytes:
        chunk = {**self._head, "choices": [choice]}
        if self.options.continuous_usage_stats:
            chunk["usage"] = self._usage.as_json()
        elif self.options.include_usage:
            chunk["usage"] = None
        return event(msgspec.json.encode(chunk))
