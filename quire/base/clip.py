"""`clip`: how much of what somebody has sent is told back, in answers and in the log."""

MAX_ECHO_CHARS = 200


def clip(text: str, chars: int = MAX_ECHO_CHARS) -> str:
    """At most `chars` characters of `text`, without lone surrogates."""
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= chars else text[: chars - 1] + "…"
