"""Arguments that a format writes as bare text; the tool's schema says which JSON they are. For XML-like formats."""

import json
from collections.abc import Mapping

from quire.chat.reader import Steps, Take, Until, Write, need
from quire.chat.values import as_json


def typed_argument(schema: Mapping[str, object], key: str, ends: tuple[str, ...], *, first: bool) -> Steps:
    """Read a value up to one of `ends`, which is consumed; write it, with its key, into the arguments.

    A text goes on as it comes. Anything else is held until it is whole, and is a text if it is no JSON.
    """
    yield Write(("{" if first else ", ") + json.dumps(key, ensure_ascii=False) + ": ")
    if _is_text(schema, key):
        yield Write('"')
        need((yield Until(ends, limit=None, write=True)))
        yield Write('"')
    else:
        text = need((yield Until(ends, limit=None)))
        yield Write(_value(text))
    need((yield Take(ends)))


def _is_text(schema: Mapping[str, object], key: str) -> bool:
    properties = schema.get("properties")
    about = properties.get(key) if isinstance(properties, Mapping) else None
    if not isinstance(about, Mapping):
        return True
    return about.get("type") == "string" or not about.keys() & {"type", "anyOf", "oneOf", "allOf", "$ref", "enum"}


def _value(text: str) -> str:
    stripped = text.strip()
    found = as_json(stripped) or as_json(stripped, python=True)
    return json.dumps(text, ensure_ascii=False) if found is None else found
