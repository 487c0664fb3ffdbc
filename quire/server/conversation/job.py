"""`chat_job`: a chat, checked and rendered, as what the engine is asked. All dialects of conversations come here."""

import msgspec
from starlette.requests import Request

from quire.base.errors import RequestError
from quire.messages.params import SamplingParams
from quire.server.conversation.answer_parser import shown_token_ids
from quire.server.conversation.frame import framed
from quire.server.conversation.reasoning import budget_of, reasoning_state_of, template_words
from quire.server.conversation.rendering import fits_of, render_chat
from quire.server.conversation.sampling import model_max_tokens, sampling_params
from quire.server.conversation.schema import ChatRequest
from quire.server.conversation.tools import ToolSet
from quire.server.generation import Job
from quire.server.jobs import job_of
from quire.server.service import Service, service_of


async def chat_job(request: Request, asked: ChatRequest, tool_set: ToolSet) -> Job:
    """What a conversation asks of the engine; the other chat endpoints are translated into this.

    The markers of calls and thoughts stay in the text, for an `AnswerParser` to find.
    """
    service = service_of(request)
    params = _params(asked, service)
    budget = budget_of(asked, service)
    asked = msgspec.structs.replace(asked, chat_template_kwargs=template_words(asked, service))
    try:
        prompt = await render_chat(asked, service, tool_set.listed, fits_of(asked, service))
    except RequestError as error:
        raise about_messages(error) from None
    form = framed(service, tool_set, params.structured_outputs, reasoning_state_of(service, prompt), budget)
    params = msgspec.structs.replace(
        params, structured_outputs=form, shown_token_ids=shown_token_ids(service, tool_set) or params.shown_token_ids
    )
    return job_of(request, asked, [prompt], params)


def _params(asked: ChatRequest, service: Service) -> SamplingParams:
    if asked.top_logprobs and not asked.logprobs:
        raise RequestError("top_logprobs need logprobs: true.", "top_logprobs")
    limit = service.engine.facts.max_logprobs
    if asked.top_logprobs is not None and not 0 <= asked.top_logprobs <= limit:
        raise RequestError(f"top_logprobs must be from 0 to {limit}.", "top_logprobs")
    longest = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
    return sampling_params(
        asked,
        service,
        max_tokens=model_max_tokens(service) if longest is None else longest,
        logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
    )


def about_messages(error: RequestError) -> RequestError:
    """A chat has no field `prompt`: what is wrong with it is wrong with the messages."""
    return RequestError(error.message, "messages" if error.param == "prompt" else error.param, error.code)
