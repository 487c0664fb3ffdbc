"""GET /v1/models and /v1/models/{id}: the one model that is served."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from quire.server.conversation.sampling import model_max_tokens
from quire.server.fields import check_model
from quire.server.service import Service, service_of

SAMPLING_FIELDS = (
    *("temperature", "top_p", "top_k", "min_p"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty"),
)


async def list_models(request: Request) -> Response:
    """All models."""
    listed = {"object": "list", "data": [_card(service_of(request))]}
    return Response(msgspec.json.encode(listed), media_type="application/json")


async def get_model(request: Request) -> Response:
    """One model; its name may hold slashes."""
    service = service_of(request)
    check_model(request.path_params["model"], service)
    return Response(msgspec.json.encode(_card(service)), media_type="application/json")


def _card(service: Service) -> dict[str, object]:
    return {
        "id": service.model_name,
        "object": "model",
        "created": service.created,
        "owned_by": "quire",
        "root": service.model_name,
        "parent": None,
        "max_model_len": service.engine.facts.max_model_len,
        "sampling_defaults": _defaults(service),
    }


def _defaults(service: Service) -> dict[str, object]:
    """What a request gets that says nothing of its sampling."""
    params = msgspec.structs.asdict(service.engine.default_params())
    return {**{name: params[name] for name in SAMPLING_FIELDS}, "max_tokens": model_max_tokens(service)}
