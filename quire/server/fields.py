"""`read`: the fields of a request, typed; and what becomes of fields that are not served.

Three kinds of other fields: harmless ones are ignored, unknown ones are ignored with one warning, and those that would
change the answer are refused, because an answer that silently lacks what was asked for is a wrong answer.
"""

from collections.abc import Collection, Mapping
from typing import ClassVar, Protocol, TypeVar

from starlette.requests import Request

from quire.base.clip import clip
from quire.base.errors import RequestError
from quire.chat.messages import check_count
from quire.server.body import read_json, to_struct
from quire.server.errors import ApiError
from quire.server.service import Service, service_of

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

FORM = "structured_outputs"
SUCCESSORS: dict[str, tuple[str, ...]] = {
    "functions": ("tools",),
    "function_call": ("tool_choice",),
    **dict.fromkeys(("guided_json", "json_schema"), (FORM, "text.format", "output_config.format")),
    **dict.fromkeys(("guided_regex", "guided_choice", "guided_grammar", "grammar", "regex", "ebnf"), (FORM,)),
}
"""Fields of old or of other servers, and those that say the same here: each dialect has one of them or none."""

REFUSED: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(SUCCESSORS, NOTHING),
    **dict.fromkeys(("logit_processors", "logits_processors", "suffix", "documents", "audio"), NOTHING),
    "tools": (None,),
    "tool_choice": (None, "none"),
    "function_call": (None, "none"),
    "modalities": (None, ["text"]),
    **dict.fromkeys(("reasoning_effort", "enable_thinking", "include_reasoning"), (None, "none", True, False)),
    "verbosity": (None, "medium"),
    "truncation_side": (None, "left"),
    "use_beam_search": NOTHING,
    **dict.fromkeys(("guided_decoding_backend", "web_search_options", "thinking_token_budget"), NOTHING),
    **dict.fromkeys(("mirostat", "typical_p", "tfs", "no_repeat_ngram_size", "logprob_token_ids"), NOTHING),
    **dict.fromkeys(("prompt_embeds", "mm_processor_kwargs", "media_io_kwargs"), NOTHING),
    # The engine's own: not even an empty one is taken from outside.
    "kv_transfer_params": (None,),
    **dict.fromkeys(("vllm_xargs", "repetition_detection", "watermarking", "return_tokens_as_token_ids"), NOTHING),
}
"""Fields that would change the answer and are not served, with the values that ask for nothing."""


class ModelRequest(Protocol):
    """What every request has: a type of its fields, and whose model is meant."""

    __struct_fields__: ClassVar[tuple[str, ...]]

    @property
    def model(self) -> str | None:
        """The model's name; None is the one that is served."""


A = TypeVar("A", bound=ModelRequest)


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
