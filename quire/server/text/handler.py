"""`JobHandler`: does the jobs of `messages/text.py`, one after the other, in the thread that calls it.

A worker is a handler in a process of its own; where there are no workers (tests, applications that make their own
server) a handler is called in threads.
"""

from typing import Any, Protocol

from quire.base.errors import EngineError, RequestError
from quire.base.logging import get_logger
from quire.checkpoint.pooling import Frame
from quire.messages.text import (
    Answer,
    Decode,
    Decoded,
    Encode,
    Encoded,
    EncodePairs,
    Failed,
    Job,
    Parse,
    Parsed,
    Refused,
    Render,
    pack,
)
from quire.server.text.lengths import check_body
from quire.server.text.strict_json import parse_object

log = get_logger(__name__)

MANY_IDS = 5_000
"""So many in a list take a millisecond to be read as what they are."""


class Tokenizer(Protocol):
    """What jobs need of a tokenizer."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Text to ids."""

    def encode_within(self, text: str, most: int) -> list[int]:
        """Text to at most so many ids."""

    def encode_pair(self, first: str, second: str, frame: Frame | None = None) -> tuple[list[int], int]:
        """Two texts put together, and where the second begins."""

    def encode_plain(self, text: str) -> list[int]:
        """Text to ids, of which none is special whatever the text spells."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        """Ids to text."""


class Template(Protocol):
    """A chat template."""

    @property
    def source(self) -> str:
        """Its text."""

    def render(self, messages: list[dict[str, Any]], **options: Any) -> list[int]:
        """A conversation as token ids. Raises RequestError."""


class JobHandler:
    """Does jobs on texts, one after the other, in the thread that calls it.

    Args:
        tokenizer: the model's.
        template: of the model, if it can chat.
    """

    def __init__(self, tokenizer: Tokenizer, template: Template | None) -> None:
        self._tokenizer = tokenizer
        self._template = template

    def do(self, job: Job) -> Answer | Refused | Failed:
        """The answer to a job; what goes wrong is an answer, too."""
        try:
            return self._do(job)
        except RequestError as error:
            return Refused(error.message, error.param, error.code)
        except EngineError as error:
            return Failed(str(error))
        except Exception:
            log.exception("a job on texts failed")
            return Failed("The text could not be worked on; the log says why.")

    def _do(self, job: Job) -> Answer:
        match job:
            case Parse():
                value = parse_object(b"".join(job.parts))
                check_body(value)
                numbers = {name: packed for name in value if (packed := _packed(value[name])) is not None}
                return Parsed({name: field for name, field in value.items() if name not in numbers}, numbers)
            case Render():
                assert self._template is not None, "whoever has no template renders nothing"
                return Encoded([pack(self._template.render(job.messages, **job.options))])
            case Encode():
                return Encoded([pack(encode(self._tokenizer, job, text)) for text in job.texts])
            case EncodePairs():
                pairs = [self._tokenizer.encode_pair(first, second, job.frame) for first, second in job.pairs]
                return Encoded([pack(ids) for ids, _ in pairs], [second for _, second in pairs])
            case Decode():
                return Decoded(self._tokenizer.decode(job.ids, skip_special_tokens=False))


def _packed(value: object) -> bytes | None:
    """A long list of token ids, packed; None for all else."""
    if not isinstance(value, list) or len(value) < MANY_IDS or set(map(type, value)) != {int}:
        return None
    try:
        return pack(value)
    except OverflowError:
        return None


def encode(tokenizer: Tokenizer, how: Encode, text: str) -> list[int]:
    """Token ids of one text, as `how` says."""
    if how.plain:
        return tokenizer.encode_plain(text)
    if how.within is not None:
        return tokenizer.encode_within(text, how.within)
    return tokenizer.encode(text, add_special_tokens=how.special)
