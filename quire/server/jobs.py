"""`job_of`: a request as the engine is asked it: in whose name, how urgent, and with whom it shares cached prefixes.

Every endpoint that generates or pools comes through here, so that what a key decides is decided once.
"""

import hashlib
import re
import uuid
from typing import Protocol

from starlette.requests import Request

from quire.base.errors import RequestError
from quire.messages.params import SamplingParams
from quire.messages.request import Scheduling
from quire.messages.validate import MAX_SALT_CHARS, check_text
from quire.server.auth import caller_of
from quire.server.errors import ApiError
from quire.server.generation import Job

_LABEL = re.compile(r"[A-Za-z0-9._-]{1,64}")


class SchedulingFields(Protocol):
    """The fields by which a request says how it stands among others."""

    @property
    def priority(self) -> int | None:
        """Lower first."""

    @property
    def cache_salt(self) -> str | None:
        """Cached prefixes are shared with the same salt only."""


def job_of(request: Request, asked: SchedulingFields, prompts: list[list[int]], params: SamplingParams) -> Job:
    """What is asked of the engine. Its id is a key for the engine, never chosen by a client.

    Raises:
        RequestError: a salt is empty, or too long: tenants would share by accident.
        ApiError: 403, the key of the request may not set priorities.
    """
    if asked.cache_salt == "":
        raise RequestError("cache_salt must not be empty; leave it out to share cached prefixes.", "cache_salt")
    caller = caller_of(request.scope)
    if asked.priority and not caller.may_prioritize:
        raise ApiError(403, "This key may not set priority; leave it out.", "priority_not_allowed", "priority")
    return Job(
        id=uuid.uuid4().hex,
        prompts=prompts,
        params=params,
        scheduling=Scheduling(asked.priority or 0, _salt(caller.tenant, asked.cache_salt or ""), caller.name),
        headers=request.headers,
    )


def answer_id(prefix: str, own: str | None) -> str:
    """The id in the answer: a label, made from the client's own if it has one and that is harmless."""
    if own is not None and not _LABEL.fullmatch(own):
        raise RequestError("request_id takes up to 64 letters, digits, '.', '_' and '-'.", "request_id")
    return f"{prefix}-{own or uuid.uuid4().hex}"


def _salt(tenant: str, salt: str) -> str:
    """One salt of both. Where there is one tenant its requests share as they say themselves."""
    if not tenant:
        return salt
    check_text("cache_salt", salt, MAX_SALT_CHARS)
    return hashlib.sha256(f"{len(tenant)} {tenant} {salt}".encode()).hexdigest()
