"""What operators ask: is it alive, is it ready, which version, how busy is it, what do the meters say."""

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from quire.server.errors import unavailable
from quire.server.service import service_of
from quire.version import __version__


async def live(request: Request) -> Response:
    """200 as long as this process answers."""
    return Response(status_code=200)


async def ready(request: Request) -> Response:
    """200 if a request would be served now: the engine lives and makes progress, and the server is not stopping."""
    problem = service_of(request).problem()
    if problem is not None:
        raise unavailable(f"Not ready: {problem}.", "not_ready")
    return Response(status_code=200)


async def version(request: Request) -> Response:
    """The version of quire."""
    return Response(msgspec.json.encode({"version": __version__}), media_type="application/json")


async def metrics(request: Request) -> Response:
    """Prometheus text, for all front ends together."""
    service = service_of(request)
    others = await service.peers.counted(service.counted())
    text = service.metrics.render([other.tallies for other in others])
    return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})


async def load(request: Request) -> Response:
    """How busy this server is, for whoever spreads requests over several."""
    service = service_of(request)
    stats, limits = service.engine.stats, service.engine.facts
    own = service.counted()
    others = await service.peers.counted(own)
    answer = {
        "server_load": own.open + sum(other.open for other in others),
        "running": stats.running,
        "waiting": stats.waiting,
        "kv_cache_usage": stats.kv_usage,
        "max_running": limits.max_num_seqs,
        "max_waiting": service.config.max_queued_requests,
    }
    return Response(msgspec.json.encode(answer), media_type="application/json")
