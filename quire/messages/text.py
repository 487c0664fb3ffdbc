"""The conversation between a front end and its text workers: a job, then its answer, over a socket pair each.

Token ids travel as packed 32-bit integers: a long prompt is unpacked piece by piece by whoever must not be held up.
"""

from array import array
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from quire.checkpoint.pooling import Frame

ID: Final = "i"
"""Type code (`array`, `memoryview`) of a packed token id."""

INTEGERS: Final = "The body holds an integer beyond 64 bits."
"""What is said of a job, or an answer, that cannot be sent because of that."""


class Setup(msgspec.Struct, tag=True):
    """The first thing that a worker hears.

    Attributes:
        tokenizer: its folder or file.
        template: Jinja, if the model can chat.
        log_level, log_format: as the server's.
    """

    tokenizer: str
    template: str | None
    log_level: str = "info"
    log_format: str = "text"


class Parse(msgspec.Struct, tag=True):
    """Read a body, which came in parts, as strict JSON."""

    parts: list[bytes]


class Encode(msgspec.Struct, tag=True):
    """Texts to token ids.

    Attributes:
        special: whether the tokenizer puts its special tokens around them.
        within: cut each to so many tokens.
        plain: whatever they spell, no token is special.
    """

    texts: list[str]
    special: bool = True
    within: int | None = None
    plain: bool = False


class EncodePairs(msgspec.Struct, tag=True):
    """Pairs of texts to token ids, each pair put together, perhaps in a frame."""

    pairs: list[tuple[str, str]]
    frame: Frame | None = None


class Decode(msgspec.Struct, tag=True):
    """Token ids to a text, special tokens included."""

    ids: list[int]


class Render(msgspec.Struct, tag=True):
    """A conversation to token ids, by the chat template.

    Attributes:
        messages: as `chat.messages` gives them.
        options: keywords of `ChatTemplate.render`.
    """

    messages: list[dict[str, Any]]
    options: dict[str, Any]


class Ready(msgspec.Struct, tag=True):
    """The worker has what it needs."""


class Parsed(msgspec.Struct, tag=True):
    """The object in a body.

    Attributes:
        value: without the fields in `numbers`.
        numbers: fields that are long lists of token ids, packed.
    """

    value: dict[str, Any]
    numbers: dict[str, bytes] = {}


class Encoded(msgspec.Struct, tag=True):
    """Packed token ids of each text; of pairs also where the second text begins."""

    ids: list[bytes]
    seconds: list[int] = []


class Decoded(msgspec.Struct, tag=True):
    """A text."""

    text: str


class Refused(msgspec.Struct, tag=True):
    """The job's sender has done something wrong: a RequestError."""

    message: str
    param: str | None
    code: str


class Failed(msgspec.Struct, tag=True):
    """The job failed and nobody knows why; the worker's log does."""

    message: str


Job = Parse | Encode | EncodePairs | Decode | Render
ToWorker = Setup | Job
Answer = Parsed | Encoded | Decoded
FromWorker = Ready | Answer | Refused | Failed


def pack(ids: Sequence[int]) -> bytes:
    """Token ids as bytes."""
    return array(ID, ids).tobytes()
