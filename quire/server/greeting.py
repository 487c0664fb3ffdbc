"""What is printed when the server is ready: what was chosen, where the time went, and what to type next."""

import socket

import msgspec

from quire.config.fields import ServerConfig
from quire.messages.params import SamplingParams
from quire.server.service import Service
from quire.server.sockets import is_own
from quire.version import __version__


def greeting(service: Service, listener: socket.socket) -> str:
    """The whole text."""
    facts = service.engine.facts
    url = url_of(listener, service.config)
    pages = ", ".join(map(str, facts.layout.groups))
    if facts.kv_cache_dtype not in (None, facts.dtype):
        pages += f" in {facts.kv_cache_dtype}"
    lines = [
        f"quire {__version__}",
        f"  model     {service.model_name}, {facts.dtype} on {facts.device}",
        f"  context   {facts.max_model_len} tokens; {facts.max_num_seqs} sequences at once; {pages}",
        f"  sampling  {_defaults(service.engine.default_params())}",
        f"  start-up  {_timeline(facts.timeline)}",
        f"  ready at  {url if service.config.uds is None else service.config.uds}",
        *_warnings(service, listener),
        "",
        "Try it:",
        f"  {_example(service, url)}",
    ]
    return "\n".join(lines)


def url_of(listener: socket.socket, config: ServerConfig) -> str:
    """Where clients on this machine find the server."""
    if config.uds is not None:
        return "http://localhost"
    host, port = listener.getsockname()[:2]
    scheme = "http" if config.ssl_certfile is None else "https"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _defaults(params: SamplingParams) -> str:
    """What differs from the library's defaults, as it comes from the checkpoint."""
    plain = msgspec.structs.asdict(SamplingParams())
    own = {name: value for name, value in msgspec.structs.asdict(params).items() if value != plain[name]}
    if not own:
        return "no defaults in the checkpoint: temperature 1"
    return (
        ", ".join(f"{name} {value}" for name, value in own.items()) + " (from the checkpoint's generation_config.json)"
    )


def _timeline(timeline: dict[str, float]) -> str:
    phases = ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in timeline.items())
    return f"{phases}; together {sum(timeline.values()):.2f} s"


def _warnings(service: Service, listener: socket.socket) -> list[str]:
    if service.config.uds is not None:
        return []
    host = str(listener.getsockname()[0])
    if not _closed(service) and not is_own(host):
        return [f"  WARNING   {host} can be reached from other machines and no key is asked for; set --api-key"]
    return []


def _guarded(service: Service) -> bool:
    return service.config.api_key is not None or service.config.api_key_file is not None


def _closed(service: Service) -> bool:
    """Whether strangers are kept out, by a key or by certificates."""
    return _guarded(service) or service.config.ssl_ca_certs is not None


def _example(service: Service, url: str) -> str:
    key = " -H 'Authorization: Bearer KEY'" if _guarded(service) else ""
    model = msgspec.json.encode(service.model_name).decode()
    if service.template is None:
        path, body = "/v1/completions", f'{{"model": {model}, "prompt": "Once upon a time", "max_tokens": 64}}'
    else:
        path = "/v1/chat/completions"
        body = f'{{"model": {model}, "messages": [{{"role": "user", "content": "Hello!"}}]}}'
    socket_flag = "" if service.config.uds is None else f"--unix-socket {service.config.uds} "
    return f"curl {socket_flag}{url}{path}{key} -H 'Content-Type: application/json' -d '{body}'"
