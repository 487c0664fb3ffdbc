"""`Rules`: a grammar of what a model may write, in Lark's syntax, put together from the words of a tool format.

Markers that are tokens of their own are written as tokens (`<[17]>`): a text that spells them would be another text to
the model. Schemas stand in it as `%json`. Formats add their calls; `quire/structured` compiles the whole.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quire.base.errors import RequestError
from quire.base.lark import ANY, json_of, slashed

_OPEN = frozenset(
    {"additionalProperties", "patternProperties", "anyOf", "oneOf", "allOf", "$ref", "unevaluatedProperties"}
)
_LOOSE = re.compile(r"\(\?(?:[=!]|<[=!])|\\[1-9]|\\k<")
"""What the library's expressions cannot say: look-around and back references."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that may be called.

    Attributes:
        name: as the model writes it.
        schema: of the arguments.
        strict: a keyword that cannot be enforced is an error; else it is passed over.
    """

    name: str
    schema: Mapping[str, object] = field(default_factory=dict)
    strict: bool = False


class Rules:
    """Puts together a grammar of what a model may write.

    Args:
        token: the id of a text that is one special token, None for any other text.
        markers: texts that may be such tokens.
        template: the chat template, for formats of which a family has two.
    """

    def __init__(self, token: Callable[[str], int | None], markers: Iterable[str], template: str = "") -> None:
        self.template = template
        found = {marker: id for marker in markers if marker and (id := token(marker)) is not None}
        self._tokens = dict(sorted(found.items(), key=lambda item: -len(item[0])))
        self._split = re.compile("(" + "|".join(map(re.escape, self._tokens)) + ")") if found else None
        self._rules: list[str] = []

    def literal(self, text: str) -> str:
        """Exactly this text."""
        parts = self._split.split(text) if self._split else [text]
        return " ".join(self._word(part) for part in parts if part) or '""'

    def token(self, marker: str) -> int | None:
        """The id of a marker that is a token."""
        return self._tokens.get(marker)

    def until(self, end: str, most_tokens: int | None = None) -> str:
        """Any text up to and with the first `end`; with at most so many tokens before it, where `end` is a token."""
        id = self._tokens.get(end)
        if id is not None:
            limit = "" if most_tokens is None else f"[max_tokens={most_tokens}]"
            return f"{self.rule(ANY, limit)} <[{id}]>"
        return self.rule(f"{ANY} {json.dumps(end)}", "[lazy]")

    def rule(self, body: str, options: str = "") -> str:
        """A rule of its own; its name."""
        name = f"r{len(self._rules)}"
        self._rules.append(f"{name}{options}: {body}")
        return name

    def one_of(self, bodies: Sequence[str]) -> str:
        """Any of several."""
        return bodies[0] if len(bodies) == 1 else "( " + " | ".join(bodies) + " )"

    def several(self, body: str, between: str, several: bool) -> str:
        """One or more with a text between them; or one."""
        if not several:
            return body
        name = self.rule(body)
        return f"{name} ( {self.literal(between)} {name} )*"

    def ordered(self, words: Sequence[tuple[str, bool]], between: str) -> str:
        """Expressions in this order, each with whether it is needed, with a text between those that are there."""
        more = first = '""'
        for word, needed in reversed(words):
            once = self.rule(word)
            later = f"{self.literal(between)} {once} {more}"
            first = self.rule(f"{once} {more}" if needed else f"{once} {more} | {first}")
            more = self.rule(later if needed else f"{later} | {more}")
        return first

    def json(self, tool: Tool) -> str:
        """The arguments of a tool as a JSON object."""
        return self.json_value(tool.schema, strict=tool.strict, an_object=True)

    def json_value(self, schema: Mapping[str, object], *, strict: bool, an_object: bool = False) -> str:
        """JSON of a schema."""
        made: dict[str, object] = dict(schema) if strict else _loosened(schema)
        if an_object and not made.keys() & {"type", "anyOf", "oneOf", "allOf", "$ref", "const", "enum"}:
            made["type"] = "object"
        if an_object and "properties" in made and not made.keys() & _OPEN:
            # What a schema does not speak of is allowed; a model that is led by a grammar would make use of it.
            made["additionalProperties"] = False
        return json_of(made) if strict else json_of(made, lenient=True)

    def text_but(self, openers: Iterable[str]) -> str:
        """Any text without one of `openers`."""
        name = f"T{len(self._rules)}"
        spelled = "|".join(slashed(re.escape(opener)).replace(" ", r"\x20") for opener in openers)
        self._rules.append(f"{name}: {ANY} & ~/(?s:.*)({spelled})(?s:.*)/")
        return name

    def source(self, start: str) -> str:
        """The whole grammar."""
        return "\n".join([f"start: {start}", *self._rules, ""])

    def _word(self, text: str) -> str:
        id = self._tokens.get(text)
        return json.dumps(text, ensure_ascii=False) if id is None else f"<[{id}]>"


def properties_of(tool: Tool) -> list[tuple[str, Mapping[str, object], bool]] | None:
    """The arguments of a tool that are written one by one: name, schema (whole in itself), whether it is required.

    None if they are not listed in the schema: then any may be given. Raises RequestError for a strict schema that says
    more than a list can.
    """
    schema = tool.schema
    if isinstance(reference := schema.get("$ref"), str) and reference.startswith("#/"):
        found = resolve(schema, reference)
        schema = {**found, **{key: schema[key] for key in ("$defs", "definitions") if key in schema}}
    listed = schema.get("properties")
    beyond = schema.keys() & {"anyOf", "oneOf", "allOf", "patternProperties", "if", "not", "$ref", "minProperties"}
    if tool.strict and beyond:
        raise RequestError(
            f"tools: {tool.name[:64]!r} is strict, but this model writes arguments one by one, so that "
            f"{min(beyond)!r} at the top of its schema cannot be enforced; leave out strict, or list properties.",
            "tools",
            "invalid_schema",
        )
    if not isinstance(listed, Mapping) or beyond:
        return None
    raw = schema.get("required")
    required = raw if isinstance(raw, list) else []
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    return [(name, {**_mapping(about), **shared}, name in required) for name, about in listed.items()]


def plain_texts(schema: Mapping[str, object]) -> list[str] | None:
    """The texts that an enum or const of texts allows; None for any other schema."""
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(values, list) and values and all(isinstance(value, str) for value in values):
        return values
    return None


def limits_text(schema: Mapping[str, object]) -> bool:
    """Whether a schema of a text says more than that it is one."""
    return bool(schema.keys() & {"pattern", "format", "minLength", "maxLength"})


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def resolve(schema: Mapping[str, object], reference: str) -> Mapping[str, object]:
    """What a reference `#/...` leads to; an empty schema if nowhere."""
    found: object = schema
    for step in reference[2:].split("/"):
        found = _mapping(found).get(step.replace("~1", "/").replace("~0", "~"))
    return _mapping(found)


def _loosened(schema: Mapping[str, object]) -> dict[str, Any]:
    """A schema without what no grammar can say; the rest of it holds."""

    def walk(value: object) -> object:
        if isinstance(value, Mapping):
            return {key: walk(item) for key, item in value.items() if not _unsayable(key, item)}
        return [walk(item) for item in value] if isinstance(value, list) else value

    found = walk(schema)
    return found if isinstance(found, dict) else {}


def _unsayable(key: str, value: object) -> bool:
    if key == "pattern":
        return isinstance(value, str) and _LOOSE.search(value) is not None
    return key == "$ref" and isinstance(value, str) and not value.startswith("#")
