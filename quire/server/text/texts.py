"""`Texts`: what endpoints ask about texts. Short texts are encoded at once, everything else is a job for others.

Answers that are long are unpacked piece by piece, as all other requests wait while a piece is worked on.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from quire.base.errors import EngineError, RequestError
from quire.checkpoint.pooling import Frame
from quire.messages.text import (
    ID,
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
)
from quire.server.text.handler import JobHandler, Tokenizer, encode
from quire.server.text.strict_json import Json

LONG_TEXT_CHARS = 4_000
"""Longer texts take a millisecond and more to encode."""

LONG_TOKENS = 5_000
PIECE_TOKENS = 1 << 14

Fits = Callable[[int], None]
"""Refuses so many tokens, if they are too many. Raises RequestError."""

Run = Callable[[Job], Awaitable[Answer | Refused | Failed]]
"""Does a job, elsewhere."""


class Texts:
    """What endpoints ask about texts: short ones are answered at once, the others are jobs.

    Args:
        run: does what is not done here.
        tokenizer: for what is.
    """

    def __init__(self, run: Run, tokenizer: Tokenizer) -> None:
        self._run = run
        self._tokenizer = tokenizer

    async def parse(self, parts: list[bytes]) -> Json:
        """A body as a JSON object. Raises RequestError."""
        answer = await self._ask(Parse(parts))
        assert isinstance(answer, Parsed)
        return {**answer.value, **{name: await _unpacked(packed) for name, packed in answer.numbers.items()}}

    async def encode(self, how: Encode, fits: Fits | None = None) -> list[list[int]]:
        """Token ids of texts; what does not fit is not unpacked. Raises RequestError."""
        if sum(map(len, how.texts)) <= LONG_TEXT_CHARS:
            return [encode(self._tokenizer, how, text) for text in how.texts]
        return await unpacked(await self._encoded(how), fits)

    async def encode_pairs(
        self, pairs: Sequence[tuple[str, str]], frame: Frame | None = None
    ) -> tuple[list[list[int]], list[int]]:
        """Token ids of pairs of texts, and where the second of each begins. Raises RequestError.

        `frame` is what stands around them, as of `PoolerFacts`.
        """
        answer = await self._encoded(EncodePairs(list(pairs), frame))
        return await unpacked(answer), answer.seconds

    async def decode(self, ids: list[int]) -> str:
        """The text of token ids. Raises RequestError."""
        if len(ids) <= LONG_TOKENS:
            return self._tokenizer.decode(ids, skip_special_tokens=False)
        answer = await self._ask(Decode(ids))
        assert isinstance(answer, Decoded)
        return answer.text

    async def render(
        self, messages: list[dict[str, Any]], options: dict[str, Any], fits: Fits | None = None
    ) -> list[int]:
        """Token ids of a conversation, by the chat template: code of strangers, never run here. Raises RequestError."""
        [ids] = await unpacked(await self._encoded(Render(messages, options)), fits)
        return ids

    async def _encoded(self, job: Job) -> Encoded:
        answer = await self._ask(job)
        assert isinstance(answer, Encoded)
        return answer

    async def _ask(self, job: Job) -> Answer:
        answer = await self._run(job)
        if isinstance(answer, Refused):
            raise RequestError(answer.message, answer.param, answer.code)
        if isinstance(answer, Failed):
            raise EngineError(answer.message)
        return answer


def in_threads(handler: JobHandler) -> Run:
    """Jobs in threads of this process, where a template that hangs cannot be stopped."""

    async def run(job: Job) -> Answer | Refused | Failed:
        return await asyncio.to_thread(handler.do, job)

    return run


async def unpacked(answer: Encoded, fits: Fits | None = None) -> list[list[int]]:
    """The token ids of an answer. Raises RequestError if they do not fit."""
    if fits is not None:
        for packed in answer.ids:
            fits(len(memoryview(packed).cast(ID)))
    return [await _unpacked(packed) for packed in answer.ids]


async def freed(ids: list[int]) -> None:
    """Empty a list that nobody needs any more: to free a million numbers at once takes 12 ms."""
    while len(ids) > PIECE_TOKENS:
        del ids[-PIECE_TOKENS:]
        await asyncio.sleep(0)


async def _unpacked(packed: bytes) -> list[int]:
    view = memoryview(packed).cast(ID)
    ids: list[int] = view[:PIECE_TOKENS].tolist()
    for start in range(PIECE_TOKENS, len(view), PIECE_TOKENS):
        await asyncio.sleep(0)
        ids += view[start : start + PIECE_TOKENS].tolist()
    return ids
