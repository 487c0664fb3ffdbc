"""Structural tags: schemas between tags, in the middle of text. vLLM's and xgrammar's words, written as Lark.

Both forms are read: `structures` with `triggers`, and the newer `format` (const_string, json_schema, regex, any_text,
sequence, or, tag, triggered_tags, tags_with_separator). Called by `llguidance.py`.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from quire.base.lark import ANY, expression, json_of

DEEPEST = 32

Literal = Callable[[str], str]
"""A text as an expression: quoted, special tokens as tokens."""


def tags_source(text: str, literal: Literal) -> str:
    """The grammar of a structural tag.

    Args:
        text: the tag as JSON.
        literal: see `Literal`.

    Raises:
        ValueError: it is none, with a sentence for the client.
    """
    wanted = json.loads(text)
    if not isinstance(wanted, dict):
        _bad("it must be an object")
    writer = _Writer(literal)
    if "format" in wanted:
        body = writer.format(wanted["format"], 0)
    else:
        tags = [
            {"begin": one.get("begin"), "end": one.get("end"), "content": {"json_schema": one.get("schema"), **_SCHEMA}}
            for one in _objects(wanted.get("structures"), "structures")
        ]
        body = writer.triggered({"triggers": wanted.get("triggers"), "tags": tags}, 0)
    return "\n".join([f"start: {body}", *writer.rules, ""])


_SCHEMA = {"type": "json_schema"}


class _Writer:
    """Writes formats as expressions, and rules where an expression will not do."""

    def __init__(self, literal: Literal) -> None:
        self.rules: list[str] = []
        self._literal = literal

    def format(self, wanted: object, depth: int) -> str:
        """Any format."""
        if not isinstance(wanted, dict) or depth > DEEPEST:
            _bad("a format must be an object, nested at most 32 deep")
        match wanted.get("type"):
            case "const_string":
                return self._literal(_text(wanted, "value"))
            case "json_schema":
                return self._json(wanted.get("json_schema"))
            case "regex":
                return expression(_text(wanted, "pattern"))
            case "any_text":
                return ANY
            case "sequence":
                parts = _objects(wanted.get("elements"), "elements")
                return " ".join(self.format(part, depth + 1) for part in parts)
            case "or":
                parts = _objects(wanted.get("elements"), "elements")
                return "( " + " | ".join(self.format(part, depth + 1) for part in parts) + " )"
            case "tag":
                return f"{self._literal(_text(wanted, 'begin'))} {self._inside(wanted, depth)}"
            case "triggered_tags":
                return self.triggered(wanted, depth)
            case "tags_with_separator":
                return self._separated(wanted, depth)
        raise ValueError(f"structural tag: the format {str(wanted.get('type'))[:40]!r} is not supported")

    def triggered(self, wanted: Mapping[str, Any], depth: int) -> str:
        """Free text; after a trigger one of the tags that begin with it."""
        triggers = wanted.get("triggers")
        if not isinstance(triggers, list) or not triggers or not all(isinstance(t, str) and t for t in triggers):
            _bad("triggers must be a list of texts")
        branches = []
        for tag in _objects(wanted.get("tags"), "tags"):
            begin = _text(tag, "begin")
            trigger = next((one for one in triggers if begin.startswith(one)), None)
            if trigger is None:
                _bad(f"no trigger begins {begin[:40]!r}")
            rest = self._literal(begin[len(trigger) :]) if begin != trigger else ""
            branches.append((trigger, f"{rest} {self._inside(tag, depth)}"))
        called = []
        for trigger in dict.fromkeys(trigger for trigger, _ in branches):
            bodies = " | ".join(self._rule(body) for one, body in branches if one == trigger)
            called.append(f"{self._lead(trigger)} ( {bodies} )")
        one = self._rule(" | ".join(called))
        if wanted.get("stop_after_first"):
            return one if wanted.get("at_least_one") else f"( {one} | {ANY} )"
        return f"{one}{'+' if wanted.get('at_least_one') else '*'} {ANY}"

    def _lead(self, trigger: str) -> str:
        """Free text up to and with a trigger."""
        marker = self._literal(trigger)
        return f"{ANY} {marker}" if marker.startswith("<[") else self._rule(f"{ANY} {marker}", "[lazy]")

    def _separated(self, wanted: Mapping[str, Any], depth: int) -> str:
        one = self._rule(" | ".join(self.format({**tag, "type": "tag"}, depth + 1) for tag in _tags(wanted)))
        if wanted.get("stop_after_first"):
            return one if wanted.get("at_least_one") else f"{one}?"
        several = f"{one} ( {self._literal(_text(wanted, 'separator'))} {one} )*"
        return several if wanted.get("at_least_one") else f"( {several} )?"

    def _inside(self, tag: Mapping[str, Any], depth: int) -> str:
        """What follows the beginning of a tag, with its end."""
        end, content = _text(tag, "end"), tag.get("content")
        if isinstance(content, dict) and content.get("type") == "any_text" and end:
            marker = self._literal(end)
            return f"{ANY} {marker}" if marker.startswith("<[") else self._rule(f"{ANY} {marker}", "[lazy]")
        return f"{self.format(content, depth + 1)} {self._literal(end) if end else ''}"

    def _json(self, schema: object) -> str:
        if isinstance(schema, bool):
            schema = {}
        if not isinstance(schema, dict):
            _bad("a schema must be an object")
        return json_of(schema)

    def _rule(self, body: str, options: str = "") -> str:
        self.rules.append(f"t{len(self.rules)}{options}: {body}")
        return f"t{len(self.rules) - 1}"


def _tags(wanted: Mapping[str, Any]) -> list[dict[str, Any]]:
    return _objects(wanted.get("tags"), "tags")


def _objects(value: object, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value or not all(isinstance(one, dict) for one in value):
        _bad(f"{name} must be a list of objects")
    return value


def _text(wanted: Mapping[str, Any], name: str) -> str:
    value = wanted.get(name)
    if not isinstance(value, str):
        _bad(f"{name} must be a text")
    return value


def _bad(why: str) -> NoReturn:
    raise ValueError(f"structural tag: {why}")
