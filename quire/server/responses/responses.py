"""/v1/responses: a conversation in, the next message out, with a memory: create, stream, get, cancel, go on from it."""

import asyncio
from typing import NoReturn

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from quire.base.clip import clip
from quire.base.errors import RequestError
from quire.base.logging import get_logger
from quire.messages.outputs import RequestOutput
from quire.server.auth import caller_of, owner_of
from quire.server.conversation.answer_parser import answer_parser_for
from quire.server.conversation.blocks import Blocks
from quire.server.conversation.job import chat_job
from quire.server.conversation.structured import own_field
from quire.server.conversation.tools import read_tool_set
from quire.server.conversation.translate import Turn
from quire.server.errors import ApiError, as_api_error
from quire.server.fields import read
from quire.server.generation import Job, admitted, check, collect
from quire.server.responses.answer import Answer
from quire.server.responses.items import turns_of
from quire.server.responses.schema import (
    IGNORED_HERE,
    REFUSED_HERE,
    ResponsesRequest,
    chat_of,
    check_served,
    renamed_here,
)
from quire.server.service import Service, service_of
from quire.server.sse import KEEP_ALIVE_S, Ending, EventStream
from quire.server.store import Running
from quire.server.watch import Watch

log = get_logger(__name__)


async def create(request: Request) -> Response:
    """Serve one request; see the module."""
    service = service_of(request)
    asked = await read(request, ResponsesRequest, REFUSED_HERE, IGNORED_HERE)
    check_served(asked)
    service.check_ready(caller_of(request.scope).name)
    async with Watch(request.receive, service.open_watches):
        try:
            return await _create(request, asked, service)
        except RequestError as error:
            raise renamed_here(error) from None


async def get(request: Request) -> Response:
    """A response that is stored or runs in the background."""
    if request.query_params.get("stream", "false").lower() != "false":
        raise RequestError("stream is not supported here; the response is given whole.", "stream")
    service = service_of(request)
    place = owner_of(request.scope), request.path_params["response_id"]
    if place in service.responses.running:
        return _json(service.responses.running[place].body())
    kept = service.responses.get(place) or await service.peers.fetch(*place)
    return _not_found(place[1]) if kept is None else _json(kept.body)


async def cancel(request: Request) -> Response:
    """End a response that runs in the background; one that has ended is given as it is."""
    service = service_of(request)
    place = owner_of(request.scope), request.path_params["response_id"]
    running = service.responses.running.get(place)
    if running is not None:
        running.task.cancel()
        await asyncio.wait([running.task])
        return _json(running.body())
    kept = service.responses.get(place) or await service.peers.fetch(*place, cancel=True)
    if kept is None:
        _not_found(place[1])
    if not msgspec.json.decode(kept.body)["background"]:
        raise RequestError("Only a response that was created with background: true can be cancelled.", "background")
    return _json(kept.body)


async def _create(request: Request, asked: ResponsesRequest, service: Service) -> Response:
    owner = owner_of(request.scope)
    turns = [*await _before(asked.previous_response_id, owner, service), *turns_of(asked.input)]
    chat = chat_of(asked, turns)
    tool_set = read_tool_set(chat, service)
    job = await chat_job(request, chat, tool_set)
    blocks = Blocks(answer_parser_for(service, tool_set, job))
    answer = Answer(asked, turns, job.params, service.model_name, owner, service.responses, blocks)
    try:
        if asked.background:
            _start(service, job, answer)
        elif asked.stream:
            items = await admitted(service, job, KEEP_ALIVE_S)
            return EventStream(answer.events(items), service.open_watches, Ending(answer.failed_events))
        else:
            (output,) = await collect(service, job)
            answer.finish(output)
    except RequestError as error:
        raise own_field(error, chat) from None
    return _json(answer.body())


async def _before(previous: str | None, owner: bytes, service: Service) -> list[Turn]:
    """The conversation that is gone on from."""
    if previous is None:
        return []
    kept = service.responses.get((owner, previous)) or await service.peers.fetch(owner, previous)
    if kept is None or not kept.turns:
        raise RequestError(
            f"previous_response_id: {clip(previous)!r} did not end well, or is not stored (any more). "
            "Send the conversation in input.",
            "previous_response_id",
            "previous_response_not_found",
        )
    return msgspec.json.decode(kept.turns, type=list[Turn])


def _start(service: Service, job: Job, answer: Answer) -> None:
    """Make the response while nobody waits. Raises what a waiting client would hear at once."""
    service.check_ready(job.scheduling.owner)
    check(service, job)
    running = service.responses.running

    def ended(task: "asyncio.Task[RequestOutput]") -> None:
        del running[answer.place]
        if task.cancelled():
            answer.cancel()
        elif (error := task.exception()) is None:
            answer.finish(task.result())
        else:
            told = as_api_error(error)
            if told.code == "internal_error":
                log.error("response %s failed", answer.id, exc_info=error)
            answer.fail(told)

    task = asyncio.create_task(_work(service, job))
    task.add_done_callback(ended)
    running[answer.place] = Running(task, answer.body)


async def _work(service: Service, job: Job) -> RequestOutput:
    # Nobody hangs up on it, but a server that stops must find it.
    async with Watch(_silence, service.open_watches):
        (output,) = await collect(service, job)
    return output


async def _silence() -> Message:
    await asyncio.Event().wait()
    return {}


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")


def _not_found(response_id: str) -> NoReturn:
    raise ApiError(
        404, f"There is no response {clip(response_id)!r}, or it is not stored any more.", "response_not_found"
    )
