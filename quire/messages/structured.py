"""`StructuredOutputsParams`: the form that an answer must have. Names are vLLM's.

Here lie the description, its limits and its key; what a grammar means is the business of `quire/structured`. Called by
`params.py`, by the validator, and by whoever tells one grammar from another.
"""

import hashlib
from typing import Any, cast

import msgspec

from quire.base.errors import RequestError
from quire.base.lark import check_end

MAX_GRAMMAR_BYTES = 256 << 10
MAX_REGEX_BYTES = 16 << 10
MAX_CHOICES = 1024
MAX_CHOICE_BYTES = 4096
MAX_NESTING = 64

FORMS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
"""Exactly one of these is given."""

FIELD = "structured_outputs"


class StructuredOutputsParams(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What the generated text must be. Exactly one form is given; None and False do not count.

    Attributes:
        json: the text is JSON of this schema (an object, or the text of one).
        regex: the whole text matches this expression (the syntax of Rust's regex crate, without look-around).
        choice: the text is one of these.
        grammar: the text is a sentence of this grammar, in Lark's syntax or llama.cpp's GBNF.
        json_object: the text is some JSON object.
        structural_tag: tags around schemas, within free text; JSON in vLLM's words.
        disable_any_whitespace: JSON without white space between its tokens.
        frame: a grammar in Lark's syntax for the whole text, in which `@form` stands for `grammar` or `structural_tag`.
            Written by the server, which puts a model's thoughts before the form.
    """

    json: dict[str, Any] | str | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | None = None
    disable_any_whitespace: bool = False
    frame: str | None = None

    def schema(self) -> dict[str, Any]:
        """That of `json`, read; any object's for `json_object`."""
        if self.json is None:
            return {"type": "object"}
        return cast(dict[str, Any], msgspec.json.decode(self.json)) if isinstance(self.json, str) else self.json


def grammar_key(wanted: StructuredOutputsParams | None) -> str | None:
    """What tells grammars apart: equal keys may share all that was compiled. None for a free text."""
    return None if wanted is None else hashlib.blake2b(msgspec.json.encode(wanted), digest_size=16).hexdigest()


def check_structured(wanted: object) -> None:
    """Check types, sizes and nesting. Raises RequestError; whether a grammar makes sense is judged when it compiles."""
    if not isinstance(wanted, StructuredOutputsParams):
        raise RequestError("structured_outputs must be StructuredOutputsParams.", FIELD, "invalid_type")
    given = [name for name, value in msgspec.structs.asdict(wanted).items() if name in FORMS and value not in _NOTHING]
    if len(given) != 1:
        forms = ", ".join(FORMS)
        raise RequestError(f"structured_outputs need exactly one of {forms}, but have {len(given)}.", FIELD)
    if wanted.json is not None:
        check_schema(wanted.json)
    if wanted.choice is not None:
        _check_choice(wanted.choice)
    for name, text, most in (
        ("regex", wanted.regex, MAX_REGEX_BYTES),
        ("grammar", wanted.grammar, MAX_GRAMMAR_BYTES),
        ("structural_tag", wanted.structural_tag, MAX_GRAMMAR_BYTES),
        ("frame", wanted.frame, MAX_GRAMMAR_BYTES),
    ):
        if text is not None:
            _check_text(name, text, most)
    if wanted.regex is not None:
        try:
            check_end(wanted.regex)
        except ValueError as error:
            raise _invalid(f"regex: {error}.") from None


def check_schema(schema: object) -> None:
    """Check that a JSON schema is an object (or the text of one) of bearable size and depth. Raises RequestError."""
    given = schema
    if isinstance(schema, str):
        _check_text("json", schema, MAX_GRAMMAR_BYTES)
        try:
            schema = msgspec.json.decode(schema)
        except (msgspec.DecodeError, RecursionError):
            raise _invalid("the JSON schema is not valid JSON.") from None
    if not isinstance(schema, dict):
        raise _invalid("a JSON schema must be an object.")
    if _depth(schema) > MAX_NESTING:
        raise _invalid(f"a JSON schema may be nested at most {MAX_NESTING} levels deep.")
    try:
        size = len(msgspec.json.encode(schema))
        if given is schema:
            # As it goes to the engine, where integers have 64 bits.
            msgspec.msgpack.encode(schema)
    except (TypeError, ValueError, OverflowError):
        raise _invalid("a JSON schema may hold only what JSON can hold, and integers of 64 bits.") from None
    if size > MAX_GRAMMAR_BYTES:
        raise _invalid(f"a JSON schema may have at most {MAX_GRAMMAR_BYTES} bytes, but this one has {size}.")


_NOTHING: tuple[object, ...] = (None, False)


def _check_choice(choice: object) -> None:
    if not isinstance(choice, list) or not all(isinstance(text, str) for text in choice):
        raise RequestError("choice must be a list of strings.", FIELD, "invalid_type")
    if not 1 <= len(choice) <= MAX_CHOICES:
        raise _invalid(f"choice takes from 1 to {MAX_CHOICES} strings, but has {len(choice)}.")
    for text in choice:
        _check_text("choice", text, MAX_CHOICE_BYTES)


def _check_text(name: str, text: object, most: int) -> None:
    if not isinstance(text, str):
        raise RequestError(f"{name} must be a string.", FIELD, "invalid_type")
    if not text:
        raise _invalid(f"{name} must not be empty.")
    if len(text.encode("utf-8", "replace")) > most:
        raise _invalid(f"{name} may have at most {most} bytes.")
    if "\0" in text:
        raise _invalid(f"{name} must not hold the character NUL.")


def _depth(value: object) -> int:
    """Levels of nesting, at most one more than allowed; without recursion, so that no input can end the process."""
    level: list[object] = [value]
    depth = 0
    while level and depth <= MAX_NESTING:
        depth += 1
        children: list[object] = []
        for item in level:
            if isinstance(item, dict):
                children += item.values()
            elif isinstance(item, list):
                children += item
        level = [child for child in children if isinstance(child, dict | list)]
    return depth


def _invalid(message: str) -> RequestError:
    return RequestError(message, FIELD, "invalid_schema")
