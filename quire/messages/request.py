"""A request as the engine core sees it: validated, in token ids. Text stays with the front end."""

from dataclasses import dataclass
from typing import TypedDict

import msgspec

from quire.messages.params import SamplingParams
from quire.messages.pooling import Pooling


@dataclass(frozen=True, slots=True)
class Scheduling:
    """How a request stands among others; `Request` says what the fields mean."""

    priority: int = 0
    cache_salt: str = ""
    owner: str = ""


USUAL = Scheduling()
"""Of a request that says nothing of it."""


class SchedulingArgs(TypedDict, total=False):
    """The fields of `Scheduling` as keywords of a call."""

    priority: int
    cache_salt: str
    owner: str


class Request(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a client asked, immutable once validated.

    Attributes:
        id: unique in this engine; made by the front end, never chosen by a client.
        token_ids: the prompt, at least one token.
        params: validated; `max_tokens` is a number, `seed` may be None.
        eos_token_ids: tokens that end the text unless params.ignore_eos.
        bad_words_ids: token sequences that must not be completed.
        priority: lower is served first, under the priority policy.
        cache_salt: requests share cached pages only with requests of the same salt.
        owner: whose it is; owners that wait are served in turns.
        pooling: what to make of the prompt; None generates, and only then `params` mean anything.
    """

    id: str
    token_ids: list[int]
    params: SamplingParams
    eos_token_ids: list[int] = []
    bad_words_ids: list[list[int]] = []
    priority: int = 0
    cache_salt: str = ""
    owner: str = ""
    pooling: Pooling | None = None
