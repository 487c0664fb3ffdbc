"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's form of a chat, whole or as a stream of named events."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from quire.base.errors import RequestError
from quire.server.anthropic.errors import error_event
from quire.server.anthropic.schema import (
    IGNORED_HERE,
    REFUSED_HERE,
    CountRequest,
    MessagesRequest,
    chat_of,
    renamed_here,
)
from quire.server.anthropic.writer import Writer
from quire.server.auth import caller_of
from quire.server.conversation.answer_parser import answer_parser_for
from quire.server.conversation.blocks import Blocks
from quire.server.conversation.job import chat_job
from quire.server.conversation.reasoning import template_words
from quire.server.conversation.rendering import render_chat
from quire.server.conversation.tools import read_tool_set
from quire.server.fields import read
from quire.server.generation import admitted, collect
from quire.server.service import service_of
from quire.server.sse import KEEP_ALIVE_S, Ending, EventStream
from quire.server.watch import Watch

ENDING = Ending(error_event)


async def messages(request: Request) -> Response:
    """Serve one request; see the module."""
    service = service_of(request)
    asked = await read(request, MessagesRequest, REFUSED_HERE, IGNORED_HERE)
    service.check_ready(caller_of(request.scope).name)
    async with Watch(request.receive, service.open_watches):
        try:
            chat = chat_of(asked, service, asked.max_tokens)
            tool_set = read_tool_set(chat, service)
            job = await chat_job(request, chat, tool_set)
            writer = Writer(service.model_name, asked.max_tokens, Blocks(answer_parser_for(service, tool_set, job)))
            if asked.stream:
                items = await admitted(service, job, KEEP_ALIVE_S)
                return EventStream(writer.events(items), service.open_watches, ENDING)
            (output,) = await collect(service, job)
        except RequestError as error:
            raise renamed_here(error) from None
    return Response(msgspec.json.encode(writer.whole(output)), media_type="application/json")


async def count_tokens(request: Request) -> Response:
    """How many tokens the same messages would be as a prompt."""
    service = service_of(request)
    asked = await read(request, CountRequest, REFUSED_HERE, IGNORED_HERE | {"max_tokens"})
    try:
        chat = chat_of(asked, service, None)
        listed = read_tool_set(chat, service).listed
        chat = msgspec.structs.replace(chat, chat_template_kwargs=template_words(chat, service))
        ids = await render_chat(chat, service, listed)
    except RequestError as error:
        raise renamed_here(error) from None
    return Response(msgspec.json.encode({"input_tokens": len(ids)}), media_type="application/json")
