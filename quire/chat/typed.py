"""Arguments that a format writes as bare text; the tool's schema says which JSON they are. For XML-like formats."""

import json
from collections.abc import Mapping

from quire.base.errors import RequestError
from quire.chat.grammar import Rules, Tool, limits_text, plain_texts, properties_of
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


def bare_arguments(rules: Rules, tool: Tool, before: tuple[str, str], end: str) -> str:
    """The grammar of a tool's arguments, each in a frame of its own, in the order of the schema.

    Args:
        before: texts around the name of an argument.
        end: text after its value.

    Raises:
        RequestError: a strict schema says what this way to write cannot keep to.
    """
    listed = properties_of(tool)
    if listed is None:
        return f"( {rules.literal(before[0])} /[A-Za-z0-9_-]{{1,64}}/ {rules.literal(before[1])} {rules.until(end)} )*"
    words = []
    for name, schema, needed in listed:
        word = f"{rules.literal(before[0] + name + before[1])} {_bare_value(rules, tool, name, schema, end)}"
        words.append(word if needed else f"( {word} )?")
    return " ".join(words)


def _bare_value(rules: Rules, tool: Tool, name: str, schema: Mapping[str, object], end: str) -> str:
    if not _is_text({"properties": {name: schema}}, name):
        return f"{rules.json_value(schema, strict=tool.strict)} {rules.literal(end)}"
    if texts := plain_texts(schema):
        return f"{rules.one_of([rules.literal(text) for text in texts])} {rules.literal(end)}"
    if tool.strict and limits_text(schema):
        raise RequestError(
            f"tools: {tool.name[:64]!r} is strict, but this model writes texts as they are, so that the limits of "
            f"{name[:64]!r} (pattern, format, length) cannot be enforced; leave them or strict out.",
            "tools",
            "invalid_schema",
        )
    return rules.until(end)
