"""The application: its routes as data, and what every request passes on its way to them.

A new endpoint is a function and one line in ROUTES. It needs a key unless it says `public=True`
and writes errors as OpenAI does unless it says `refuse=`.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NoReturn

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from quire.chat.formats.recognise import reasoning_format, tool_format
from quire.config.fields import ServerConfig
from quire.messages.pooling import GENERATE
from quire.messages.validate_pooling import check_task
from quire.server import ops
from quire.server.admission import Admission, Limits
from quire.server.anthropic import messages
from quire.server.anthropic.errors import refuse
from quire.server.anthropic.schema import CountRequest, MessagesRequest
from quire.server.auth import KeyGuard
from quire.server.conversation.schema import ChatRequest
from quire.server.errors import ApiError, Refuse, as_api_error
from quire.server.keys import keys_of
from quire.server.metrics import Metrics
from quire.server.middleware import RequestMiddleware
from quire.server.openai import chat, completions, models, tokens
from quire.server.openai.schema import CompletionRequest, DetokenizeRequest, TokenizeRequest
from quire.server.openapi import describe
from quire.server.page import page
from quire.server.peers import NoPeers, Peers
from quire.server.pooling import scores, vectors
from quire.server.pooling.schema import (
    ClassificationRequest,
    EmbeddingRequest,
    PoolingRequest,
    RerankRequest,
    ScoreRequest,
)
from quire.server.responses import responses
from quire.server.responses.schema import ResponsesRequest
from quire.server.service import Engine, Service, service_of
from quire.server.store import Store
from quire.server.text.handler import JobHandler, Template
from quire.server.text.texts import Run, Texts, in_threads
from quire.server.tracing import tracer_for


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A route: one path, one method (GET answers HEAD too), one function; `public` ones need no key.

    `takes` is the type of the body, `task` what the model must serve.
    """

    method: str
    path: str
    serve: Callable[[Request], Awaitable[Response]]
    public: bool = False
    refuse: Refuse = ApiError.response
    takes: type[msgspec.Struct] | None = None
    task: str | None = None

    @property
    def endpoint(self) -> Callable[[Request], Awaitable[Response]]:
        """`serve`, if the model serves the task."""
        serve, task = self.serve, self.task
        if task is None:
            return serve

        async def checked(request: Request) -> Response:
            check_task(task, service_of(request).engine.facts)
            return await serve(request)

        return checked


async def openapi(request: Request) -> Response:
    """This API, described in OpenAPI's terms."""
    document = describe(ROUTES, service_of(request).model_name)
    return Response(msgspec.json.encode(document), media_type="application/json")


ROUTES = (
    Endpoint("GET", "/", page, public=True),
    Endpoint("POST", "/v1/chat/completions", chat.chat_completions, takes=ChatRequest, task=GENERATE),
    Endpoint("POST", "/v1/completions", completions.completions, takes=CompletionRequest, task=GENERATE),
    Endpoint("POST", "/v1/responses", responses.create, takes=ResponsesRequest, task=GENERATE),
    Endpoint("GET", "/v1/responses/{response_id}", responses.get),
    Endpoint("POST", "/v1/responses/{response_id}/cancel", responses.cancel),
    Endpoint("POST", "/v1/messages", messages.messages, refuse=refuse, takes=MessagesRequest, task=GENERATE),
    Endpoint("POST", "/v1/messages/count_tokens", messages.count_tokens, refuse=refuse, takes=CountRequest),
    Endpoint("POST", "/v1/embeddings", vectors.embeddings, takes=EmbeddingRequest, task="embed"),
    Endpoint("POST", "/classify", vectors.classify, takes=ClassificationRequest, task="classify"),
    Endpoint("POST", "/pooling", vectors.pooling, takes=PoolingRequest),
    *(Endpoint("POST", p, scores.score, takes=ScoreRequest, task="score") for p in ("/score", "/v1/score")),
    *(
        Endpoint("POST", path, scores.rerank, takes=RerankRequest, task="score")
        for path in ("/rerank", "/v1/rerank", "/v2/rerank")
    ),
    Endpoint("GET", "/v1/models", models.list_models),
    Endpoint("GET", "/v1/models/{model:path}", models.get_model),
    Endpoint("POST", "/tokenize", tokens.tokenize, takes=TokenizeRequest),
    Endpoint("POST", "/detokenize", tokens.detokenize, takes=DetokenizeRequest),
    Endpoint("GET", "/openapi.json", openapi),
    Endpoint("GET", "/version", ops.version),
    Endpoint("GET", "/metrics", ops.metrics),
    Endpoint("GET", "/load", ops.load),
    Endpoint("GET", "/live", ops.live, public=True),
    Endpoint("GET", "/ready", ops.ready, public=True),
    Endpoint("GET", "/health", ops.ready, public=True),
    Endpoint("GET", "/ping", ops.ready, public=True),
)


def create_app(
    engine: Engine,
    config: ServerConfig,
    template: Template | None = None,
    peers: Peers | None = None,
    run_texts: Run | None = None,
) -> Starlette:
    """The ASGI application over `engine` (an `AsyncLLM` or anything like it).

    Args:
        engine: ready to generate.
        config: of the server.
        template: for /v1/chat/completions; None if the model cannot chat.
        peers: the other front ends, if there are any.
        run_texts: does jobs on texts where they can be stopped; None does them in threads.

    Raises:
        ConfigError: there is no parser of the name that `config` gives.
    """
    name = config.served_model_name or engine.model.name
    metrics = Metrics(engine, name, [route.path for route in ROUTES])
    peers = peers or NoPeers()
    # Each front end has its share: none of them knows what the others hold.
    sequences = engine.facts.max_num_seqs + config.max_queued_requests
    limits = Limits(-(-sequences // peers.count), -(-config.max_queued_tokens // peers.count))
    app = Starlette(
        routes=[Route(route.path, route.endpoint, methods=[route.method]) for route in ROUTES],
        middleware=_middleware(config, metrics),
        exception_handlers={HTTPException: _no_route},
    )
    # A redirect would answer for a URL that is not in the table.
    app.router.redirect_slashes = False
    source = template.source if template else ""
    app.state.service = Service(
        engine=engine,
        config=config,
        metrics=metrics,
        admission=Admission(limits),
        template=template,
        texts=Texts(run_texts or in_threads(JobHandler(engine.tokenizer, template)), engine.tokenizer),
        model_name=name,
        responses=Store(config.response_store_bytes),
        tool_format=tool_format(config.tool_call_parser, source),
        reasoning_format=reasoning_format(config.reasoning_parser, source),
        tracer=tracer_for(config.otlp_traces_endpoint, name),
        peers=peers,
    )
    return app


def _middleware(config: ServerConfig, metrics: Metrics) -> list[Middleware]:
    """What every request passes, from the outside in."""
    dialects = {route.path: route.refuse for route in ROUTES}
    public = [route.path for route in ROUTES if route.public]
    return [
        *_cross_origin(config.allowed_origins),
        Middleware(
            RequestMiddleware,
            metrics=metrics,
            access_log=not config.disable_access_log,
            dialects=dialects,
            root=config.root_path,
        ),
        Middleware(KeyGuard, keys=keys_of(config), public=public),
    ]


def _cross_origin(allowed: str) -> list[Middleware]:
    """Lets pages of the origins `allowed` (by commas) call. Outside of all else, so that refusals can be read too."""
    origins = [origin.strip() for origin in allowed.split(",") if origin.strip()]
    if not origins:
        return []
    return [Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])]


async def _no_route(request: Request, error: Exception) -> NoReturn:
    raise as_api_error(error)
