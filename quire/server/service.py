"""What the endpoints share: the engine, the limits, the names; and the protocol that an engine must follow.

`Service` is made once by `create_app` and found by endpoints at `request.app.state.service`.
"""

import hashlib
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Protocol, Unpack

from starlette.requests import Request

from quire.base.clip import clip
from quire.base.logging import get_logger, warn_once
from quire.chat.formats.base import ReasoningFormat, ToolFormat
from quire.checkpoint.facts import ModelFacts
from quire.config.fields import ServerConfig
from quire.messages.control import Counted
from quire.messages.outputs import RequestOutput
from quire.messages.params import SamplingParams
from quire.messages.pooling import PoolingParams
from quire.messages.prompts import PairPrompt, TokensPrompt
from quire.messages.request import SchedulingArgs
from quire.messages.wire import EngineFacts, Stats
from quire.server.admission import Admission
from quire.server.metrics import Metrics
from quire.server.peers import NoPeers, Peers
from quire.server.store import Store
from quire.server.text import handler
from quire.server.text.texts import Texts
from quire.server.tracing import NoTracer, Tracer
from quire.server.watch import Watch

log = get_logger(__name__)

MAX_WARNED_FIELDS = 100


class Tokenizer(handler.Tokenizer, Protocol):
    """What the server needs of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of ids."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that are left out of texts."""

    def encode_word(self, word: str) -> list[int]:
        """A short text to ids, without special tokens."""

    def token_text(self, token_id: int, /) -> str:
        """One token as text."""

    def token_bytes(self, token_id: int, /) -> bytes:
        """One token as bytes."""


class Engine(Protocol):
    """`AsyncLLM`, as far as the server uses it; tests bring a fake."""

    @property
    def facts(self) -> EngineFacts:
        """Limits and layout."""

    @property
    def model(self) -> ModelFacts:
        """The checkpoint."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""

    @property
    def stats(self) -> Stats:
        """Of the last step."""

    @property
    def patience_s(self) -> float:
        """How long a step may take, as the engine said itself; 0 has no opinion."""

    @property
    def dead(self) -> str | None:
        """Why the engine has ended, or None."""

    def raise_if_dead(self) -> None:
        """Raise EngineDeadError where no engine would answer."""

    def default_params(self) -> SamplingParams:
        """The checkpoint's sampling defaults."""

    def generate(
        self,
        prompt: TokensPrompt,
        sampling_params: SamplingParams,
        request_id: str | None = None,
        **scheduling: Unpack[SchedulingArgs],
    ) -> AsyncGenerator[RequestOutput, None]:
        """Complete a prompt."""

    def encode(
        self,
        prompt: PairPrompt,
        pooling_params: PoolingParams,
        request_id: str | None = None,
        **scheduling: Unpack[SchedulingArgs],
    ) -> AsyncGenerator[RequestOutput, None]:
        """Pool a text, or two."""


@dataclass(slots=True)
class Service:
    """One served model.

    Attributes:
        engine, config, metrics, admission: what endpoints work with.
        template: of the chat endpoint, if the model can chat; it is looked at here, and run by `texts`.
        texts: does what takes long, or runs code of strangers.
        model_name: the model's name in the API.
        responses: of /v1/responses, to be fetched or gone on from.
        tool_format, reasoning_format: how the model writes calls of tools and thoughts, if it does.
        tracer: makes a trace of each request.
        peers: the other front ends of the server.
        created: when the service was made, unix seconds.
        open_watches: one per request at work.
    """

    engine: Engine
    config: ServerConfig
    metrics: Metrics
    admission: Admission
    template: handler.Template | None
    texts: Texts
    model_name: str
    responses: Store
    tool_format: ToolFormat | None = None
    reasoning_format: ReasoningFormat | None = None
    tracer: Tracer = field(default_factory=NoTracer)
    peers: Peers = field(default_factory=NoPeers)
    created: int = field(default_factory=lambda: int(time.time()))
    open_watches: set[Watch] = field(default_factory=set)
    _steps: int = -1
    _stepped_at: float = 0.0
    _warned: set[str] = field(default_factory=set)

    @property
    def template_source(self) -> str:
        """The text of the chat template; empty if there is none."""
        return "" if self.template is None else self.template.source

    @property
    def fingerprint(self) -> str:
        """Changes when answers to the same request may change."""
        facts = self.engine.facts
        parts = (self.engine.model.name, facts.dtype, str(facts.kv_cache_dtype), facts.device, facts.version)
        return "fp_" + hashlib.sha256("|".join(parts).encode()).hexdigest()[:10]

    def counted(self) -> Counted:
        """What this front end has counted."""
        return Counted(self.admission.open, self.metrics.tallies())

    def check_ready(self, caller: str) -> None:
        """Raise the error that a new request of `caller` would meet now. Called before any costly work."""
        self.engine.raise_if_dead()
        self.admission.check(caller)

    def problem(self) -> str | None:
        """Why the service is not ready, or None. Judged by progress: the engine's work must make steps.

        The limit is the one by which the supervisor ends a core. Who only reads slowly is no work of the engine.
        """
        if self.engine.dead is not None:
            return "the engine has stopped"
        if self.admission.draining:
            return "the server is shutting down"
        now, stats = time.monotonic(), self.engine.stats
        if stats.steps != self._steps or not (stats.running or stats.waiting):
            self._steps, self._stepped_at = stats.steps, now
        limit_s = max(self.config.stall_timeout_s, self.engine.patience_s)
        return "the engine makes no progress" if now - self._stepped_at > limit_s else None

    def warn_unknown(self, names: set[str]) -> None:
        """Say once per field name, and for a bounded number of names, that a field has no effect."""
        for name in names - self._warned:
            if len(self._warned) < MAX_WARNED_FIELDS:
                self._warned.add(name)
                warn_once(log, f"requests send the unknown field {clip(name, 64)!r}, which has no effect")


def service_of(request: Request) -> Service:
    """The service that `request` came to."""
    service: Service = request.app.state.service
    return service
