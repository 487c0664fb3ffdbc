"""The fields of requests, typed; and what becomes of fields that are not served.

Three kinds of other fields: harmless ones are ignored, unknown ones are ignored with one warning, and those that would
change the answer are refused, because an answer that silently lacks what was asked for is a wrong answer.
"""

from collections.abc import Collection, Mapping
from typing import ClassVar, Protocol, TypeVar

import msgspec
from starlette.requests import Request

from quire.base.clip import clip
from quire.base.errors import RequestError
from quire.chat.messages import check_count
from quire.server.auth import caller_of
from quire.server.body import read_json, to_struct
from quire.server.errors import ApiError
from quire.server.service import Service, service_of


class StreamOptions(msgspec.Struct):
    """`include_usage`: a last chunk with usage. `continuous_usage_stats`: usage in every chunk."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Generating(msgspec.Struct, kw_only=True):
    """Fields that chat completions and completions share; null always means the default."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    best_of: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[int] | None = None
    logit_bias: dict[str, float] | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    priority: int | None = None
    cache_salt: str | None = None
    response_format: object = None
    structured_outputs: object = None
    request_id: str | None = None


class ChatRequest(Generating, kw_only=True):
    """POST /v1/chat/completions. `messages` are checked in `messages.py`, tools in `tools.py`."""

    messages: object
    logprobs: bool | None = None
    top_logprobs: int | None = None
    max_completion_tokens: int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, object] | None = None
    tools: object = None
    tool_choice: object = None
    parallel_tool_calls: bool | None = None
    enable_thinking: bool | None = None
    reasoning_effort: str | None = None
    include_reasoning: bool | None = None
    thinking_token_budget: int | None = None


class CompletionRequest(Generating, kw_only=True):
    """POST /v1/completions. `prompt` is checked in `prompts.py`."""

    prompt: object
    suffix: str | None = None
    echo: bool | None = None
    logprobs: int | None = None


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """POST /tokenize: `prompt`, or `messages` as in a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: object = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, object] | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """POST /detokenize."""

    tokens: list[int]
    model: str | None = None


IGNORED = frozenset(
    {
        *(
            "user",
            "metadata",
            "store",
            "service_tier",
            "safety_identifier",
            "prompt_cache_key",
            "prompt_cache_retention",
        ),
        *("parallel_tool_calls", "session_id", "prediction", "length_penalty"),
    }
)
"""Known fields that change no answer."""

NOTHING: tuple[object, ...] = (None, False, "", [], {})
"""Values by which a client says that it does not use a field."""

REFUSED: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(("functions", "logit_processors", "logits_processors", "suffix", "documents", "audio"), NOTHING),
    "tools": (None,),
    "tool_choice": (None, "none"),
    "function_call": (None, "none"),
    "modalities": (None, ["text"]),
    **dict.fromkeys(("reasoning_effort", "enable_thinking", "include_reasoning"), (None, "none", True, False)),
    "verbosity": (None, "medium"),
    "truncation_side": (None, "left"),
    "use_beam_search": NOTHING,
    **dict.fromkeys(
        (
            "guided_json",
            "guided_regex",
            "guided_choice",
            "guided_grammar",
            "guided_decoding_backend",
        ),
        NOTHING,
    ),
    **dict.fromkeys(
        ("grammar", "regex", "ebnf", "json_schema", "web_search_options", "thinking_token_budget"), NOTHING
    ),
    **dict.fromkeys(("mirostat", "typical_p", "tfs", "no_repeat_ngram_size", "logprob_token_ids"), NOTHING),
    **dict.fromkeys(("prompt_embeds", "mm_processor_kwargs", "media_io_kwargs"), NOTHING),
    # The engine's own: not even an empty one is taken from outside.
    "kv_transfer_params": (None,),
    **dict.fromkeys(("vllm_xargs", "repetition_detection", "watermarking", "return_tokens_as_token_ids"), NOTHING),
}
"""Fields that would change the answer and are not served, with the values that ask for nothing."""

FORM = "structured_outputs"
SUCCESSORS: dict[str, tuple[str, ...]] = {
    "functions": ("tools",),
    "function_call": ("tool_choice",),
    **dict.fromkeys(("guided_json", "json_schema"), (FORM, "text.format", "output_config.format")),
    **dict.fromkeys(("guided_regex", "guided_choice", "guided_grammar", "grammar", "regex", "ebnf"), (FORM,)),
}
"""Fields of old or of other servers, and those that say the same here: each dialect has one of them or none."""


class ModelRequest(Protocol):
    """What every request has: a type of its fields, and whose model is meant."""

    __struct_fields__: ClassVar[tuple[str, ...]]

    @property
    def model(self) -> str | None:
        """The model's name; None is the one that is served."""


A = TypeVar("A", bound=ModelRequest)
G = TypeVar("G", bound=Generating)


async def read_generating(request: Request, kind: type[G]) -> G:
    """`read` for texts to be generated; refuses what an engine that is busy or gone would not take."""
    asked = await read(request, kind)
    if asked.stream_options is not None and not asked.stream:
        raise RequestError("stream_options need stream: true.", "stream_options")
    if asked.stream and asked.prompt_logprobs is not None:
        raise RequestError("prompt_logprobs are not given in streams; leave out stream.", "prompt_logprobs")
    # best_of is served where it does nothing.
    if asked.best_of is not None and asked.best_of != (asked.n or 1):
        raise RequestError(
            "best_of is not supported, except equal to n; leave it out.", "best_of", "unsupported_parameter"
        )
    service_of(request).check_ready(caller_of(request.scope).name)
    return asked


async def read(
    request: Request,
    kind: type[A],
    refused: Mapping[str, tuple[object, ...]] = REFUSED,
    ignored: Collection[str] = IGNORED,
) -> A:
    """The fields of a request for the model that is served.

    Raises ApiError for what is no JSON object, for a wrong type and for another model, RequestError else.
    """
    service = service_of(request)
    body = await read_json(request, service.config.max_body_bytes)
    check_count(body.get("messages"))
    known = set(kind.__struct_fields__)
    for name in body.keys() - known:
        _refuse_if_asked(name, body[name], refused, known)
    service.warn_unknown(body.keys() - known - refused.keys() - set(ignored))
    asked = to_struct(kind, body)
    check_model(asked.model, service)
    return asked


def _refuse_if_asked(
    name: str, value: object, refused: Mapping[str, tuple[object, ...]], known: Collection[str]
) -> None:
    if name == "chat_template" and value is not None:
        raise RequestError(
            "chat_template is the server's to choose: start it with --chat-template FILE.",
            name,
            "chat_template_not_allowed",
        )
    if name in refused and value not in refused[name]:
        successors = [field for field in SUCCESSORS.get(name, ()) if field.partition(".")[0] in known]
        remedy = f"read here; send {successors[0]}" if successors else "supported yet; leave it out"
        raise RequestError(f"{name} is not {remedy}.", name, "unsupported_parameter")


def check_model(name: str | None, service: Service) -> None:
    """Raise the 404 for a model that is not served here. None means the one that is."""
    if name is not None and name != service.model_name:
        raise ApiError(
            404,
            f"The model `{clip(name)}` does not exist; this server has `{service.model_name}`.",
            "model_not_found",
            "model",
        )
