"""Bad and odd forms of answers, for servers with an engine that compiles grammars. See `cases`."""

from typing import Any

from tests.server.cases import chat
from tests.structured.test_checker import BOMB

FORMAT = "response_format"
OUTPUTS = "structured_outputs"


def schema(content: Any, **more: object) -> dict[str, Any]:
    """A response_format."""
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": content, "strict": True, **more}}


def nested(levels: int) -> dict[str, Any]:
    """A schema so deep."""
    made: dict[str, Any] = {"type": "integer"}
    for _ in range(levels - 1):
        made = {"items": made}
    return made


FORMATS = [
    chat("json_schema without one", FORMAT, response_format={"type": "json_schema"}),
    chat("type xml", FORMAT, response_format={"type": "xml"}),
    *[chat(f"schema {bad!r}", FORMAT, response_format=schema(bad)) for bad in ("notjson", 5, [])],
    chat("a type misspelt", FORMAT, code="invalid_schema", response_format=schema({"type": "stsring"})),
    chat("strict and additionalProperties left open", status=200, response_format=schema({"type": "object"})),
    chat("schema of 11 levels", status=200, response_format=schema(nested(11))),
    chat("schema of 65 levels", response_format=schema(nested(65))),
    chat("a reference to itself", FORMAT, response_format=schema({"$ref": "#"})),
    chat("a reference to elsewhere", FORMAT, response_format=schema({"$ref": "http://127.0.0.1:9/schema"})),
    *[
        chat(f"regex {bad!r:.30}", OUTPUTS, structured_outputs={"regex": bad})
        for bad in ("(", "\\", "(?=a)b", r"(a)\1", "a\0", "", "a" * 20_000)
    ],
    *[
        chat(f"regex that chokes others {odd}", status=200, structured_outputs={"regex": odd})
        for odd in ("(a+)+b", "(a|aa)*c", "[a-z]{1,100000}")
    ],
    *[
        chat(f"grammar {bad!r:.30}", OUTPUTS, structured_outputs={"grammar": bad})
        for bad in ("", "start: missing", "start: start", "root ::= (", "x" * (1 << 20))
    ],
    *[
        chat(f"choice {name}", OUTPUTS, structured_outputs={"choice": bad})
        for name, bad in (("of none", []), ("of nothing", [""]), ("of 100,000", ["a"] * 100_000), ("of numbers", [1]))
    ],
    chat("two forms", OUTPUTS, structured_outputs={"regex": "a", "choice": ["b"]}),
    chat("json_object without the word", status=200, response_format={"type": "json_object"}),
    chat("a form that may be cut", status=200, response_format=schema({"const": "x" * 100}), max_tokens=3),
    chat(
        "a strict tool and a form",
        status=200,
        response_format=schema({"const": 1}),
        tools=[{"type": "function", "function": {"name": "f"}}],
    ),
]

BOMB_CASE = chat("a bomb", OUTPUTS, structured_outputs={"grammar": BOMB})

# A text that may only be "b", of tokens that cannot spell it: an error of that request alone.
DEAD_END = chat("no way on", None, 500, "engine_error", structured_outputs={"choice": ["b"]}, allowed_token_ids=[1])
