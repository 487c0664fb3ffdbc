"""FunctionGemma and Gemma 4: `call:f{a:1,b:<escape>text<escape>}` between markers; each has markers of its own.

Keys are bare, texts stand between two equal marks, everything else is as in JSON.
"""

import json
from collections.abc import Callable, Mapping, Sequence

from quire.base.errors import RequestError
from quire.chat.events import Tools
from quire.chat.formats.base import Calls, ToolFormat
from quire.chat.grammar import Rules, Tool, limits_text, plain_texts, properties_of, resolve
from quire.chat.reader import Done, MalformedError, Peek, Space, Start, Steps, Take, Until, Write, need
from quire.chat.values import MAX_DEPTH, as_json

CALL = "call:"
DEEPEST = 16


def _reads(start: str, end: str, quote: str) -> Callable[[Tools], Steps]:
    def steps(tools: Tools) -> Steps:
        need((yield Take((start,))))
        yield Space()
        need((yield Take((CALL,))))
        name = need((yield Until(("{", end, "\n")))).strip()
        if not name or (yield Peek()) != "{":
            raise MalformedError
        yield Start(name)
        yield from _value(quote, 0)
        yield Done()
        yield Space()
        yield Take((end,))

    return steps


def _value(quote: str, depth: int) -> Steps:
    if depth > MAX_DEPTH:
        raise MalformedError
    yield Space()
    if (yield Take((quote,))) is not None:
        yield Write('"')
        need((yield Until((quote,), limit=None, write=True)))
        yield Take((quote,))
        yield Write('"')
    elif (yield Take(("{",))) is not None:
        yield from _several(quote, depth, "}")
    elif (yield Take(("[",))) is not None:
        yield from _several(quote, depth, "]")
    else:
        text = need((yield Until((",", "}", "]"), limit=400))).strip()
        yield Write(as_json(text, python=True) or json.dumps(text, ensure_ascii=False))


def _several(quote: str, depth: int, end: str) -> Steps:
    """Values, of an object with their keys, up to the bracket that closes them."""
    yield Write("{" if end == "}" else "[")
    yield Space()
    if (yield Take((end,))) is None:
        following = ","
        while following == ",":
            if end == "}":
                yield Space()
                key = need((yield Until((":", "}", "\n")))).strip().removeprefix(quote).removesuffix(quote)
                need((yield Take((":",))))
                yield Write(json.dumps(key, ensure_ascii=False) + ": ")
            yield from _value(quote, depth + 1)
            yield Space()
            following = need((yield Take((",", end))))
            if following == ",":
                yield Write(", ")
    yield Write(end)


def _writes(start: str, end: str, quote: str) -> Calls:
    def calls(rules: Rules, tools: Sequence[Tool], several: bool) -> str:
        bodies = []
        for tool in tools:
            arguments = _object(_Writer(rules, quote, tool), tool)
            bodies.append(f"{rules.literal(CALL + tool.name + '{')} {arguments} {rules.literal('}')}")
        call = f"{rules.literal(start)} {rules.one_of(bodies)} {rules.literal(end)}"
        return rules.several(call, "", several)

    return calls


class _Writer:
    """Writes the values of one tool's schema, which may refer to itself `DEEPEST` levels deep."""

    def __init__(self, rules: Rules, quote: str, tool: Tool) -> None:
        self.rules = rules
        self.quote = quote
        self.tool = tool

    def value(self, schema: Mapping[str, object], depth: int = 0) -> str:
        """One value."""
        rules, kind = self.rules, schema.get("type")
        if others := self._alternatives(schema):
            if depth > DEEPEST:
                raise self._cannot("a schema that refers to itself")
            return rules.one_of([rules.rule(self.value(other, depth + 1)) for other in others])
        if texts := plain_texts(schema):
            return rules.one_of([rules.literal(self.quote + text + self.quote) for text in texts])
        if kind == "string":
            if self.tool.strict and limits_text(schema):
                raise self._cannot("the limits of a text")
            return f"{rules.literal(self.quote)} {rules.until(self.quote)}"
        if kind in ("integer", "number", "boolean", "null"):
            return rules.json_value(schema, strict=self.tool.strict)
        if kind == "object" and isinstance(schema.get("properties"), Mapping):
            inner = _object(self, Tool(self.tool.name, schema, self.tool.strict), depth)
            return f"{rules.literal('{')} {inner} {rules.literal('}')}"
        items = schema.get("items")
        if kind == "array" and isinstance(items, Mapping) and not schema.keys() & {"minItems", "maxItems"}:
            one = rules.rule(self.value(items, depth))
            return f'"[" ( {one} ( "," {one} )* )? "]"'
        if self.tool.strict:
            raise self._cannot("anything but texts, numbers, lists and objects with properties")
        return f"{rules.literal(self.quote)} {rules.until(self.quote)}"

    def _alternatives(self, schema: Mapping[str, object]) -> list[Mapping[str, object]]:
        """Schemas of which any will do in place of this one."""
        reference, types = schema.get("$ref"), schema.get("type")
        if isinstance(reference, str) and reference.startswith("#/"):
            return [resolve(self.tool.schema, reference)]
        if isinstance(types, list):
            return [{**schema, "type": kind} for kind in types]
        several = schema.get("anyOf", schema.get("oneOf"))
        return [one for one in several if isinstance(one, Mapping)] if isinstance(several, list) else []

    def _cannot(self, what: str) -> RequestError:
        return RequestError(
            f"tools: {self.tool.name[:64]!r} is strict, but with this model {what} cannot be enforced; leave it out.",
            "tools",
            "invalid_schema",
        )


def _object(writer: _Writer, tool: Tool, depth: int = 0) -> str:
    listed = properties_of(tool) or []
    words = [
        (f"{writer.rules.literal(name + ':')} {writer.value(schema, depth)}", needed) for name, schema, needed in listed
    ]
    return writer.rules.ordered(words, ",")


def _format(name: str, start: str, end: str, quote: str) -> ToolFormat:
    return ToolFormat(
        name,
        signs=((start, quote),),
        openers=(start,),
        steps=_reads(start, end, quote),
        markers=(start, end, quote),
        calls=_writes(start, end, quote),
    )


FORMAT = _format("gemma4", "<|tool_call>", "<tool_call|>", '<|"|>')
FUNCTION_FORMAT = _format("functiongemma", "<start_function_call>", "<end_function_call>", "<escape>")
