"""`response_format` and `structured_outputs`: the form of an answer, as clients ask for it.

OpenAI's field and vLLM's become the same `StructuredOutputsParams`; sizes and meaning are judged behind the validator.
Called for chats and completions alike.
"""

import re
from typing import Literal, TypeVar

import msgspec

from quire.base.errors import RequestError
from quire.messages.structured import FIELD, StructuredOutputsParams, check_structured
from quire.server.conversation.schema import Generating

RESPONSE_FORMAT = "response_format"

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class JsonSchema(msgspec.Struct):
    """`response_format.json_schema`. Every schema is enforced, whether `strict` or not."""

    name: str
    schema: dict[str, object] | None = None
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(msgspec.Struct):
    """OpenAI's `response_format`."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchema | None = None


def structured_of(asked: Generating) -> StructuredOutputsParams | None:
    """The form that a request asks for; None for free text. Raises RequestError that names the client's own field."""
    form = _from_response_format(asked.response_format)
    if asked.structured_outputs is not None:
        if form is not None:
            raise RequestError("give response_format or structured_outputs, not both.", FIELD)
        form = _convert(asked.structured_outputs, StructuredOutputsParams, FIELD)
        if form.frame is not None:
            raise RequestError("structured_outputs.frame is the server's own; leave it out.", FIELD)
    if form is not None:
        try:
            check_structured(form)
        except RequestError as error:
            raise own_field(error, asked) from None
    return form


def own_field(error: RequestError, asked: Generating) -> RequestError:
    """The same error about the field that the client used: both are one thing behind the validator."""
    if error.param != FIELD or asked.structured_outputs is not None:
        return error
    return RequestError(error.message, "tools" if asked.response_format is None else RESPONSE_FORMAT, error.code)


def _from_response_format(value: object) -> StructuredOutputsParams | None:
    if value is None:
        return None
    wanted = _convert(value, ResponseFormat, RESPONSE_FORMAT)
    if wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return StructuredOutputsParams(json_object=True)
    if wanted.type == "structural_tag":
        return StructuredOutputsParams(structural_tag=msgspec.json.encode(value).decode())
    schema = wanted.json_schema
    if schema is None or schema.schema is None:
        raise RequestError(
            'response_format of type json_schema needs {"json_schema": {"name": ..., "schema": {...}}}.',
            RESPONSE_FORMAT,
            "invalid_schema",
        )
    if not _NAME.fullmatch(schema.name):
        raise RequestError("response_format.json_schema.name takes 1 to 64 of A-Z a-z 0-9 _ -.", RESPONSE_FORMAT)
    return StructuredOutputsParams(json=schema.schema)


T = TypeVar("T", bound=msgspec.Struct)


def _convert(value: object, kind: type[T], name: str) -> T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        sentence = str(error).replace("`$.", f"`{name}.")
        raise RequestError(f"{name}: {sentence[:300]}.", name, "invalid_type") from None
