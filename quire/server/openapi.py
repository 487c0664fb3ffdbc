"""`describe`: the server's OpenAPI document, made from the table of routes and the types that endpoints read.

Fields whose checks are code (conversations, prompts, tools) are described here by hand; everything else follows the
structs. What the document allows may still be refused, with a 400 that says why.
"""

import inspect
from collections.abc import Iterable
from typing import Any, Protocol

import msgspec

from quire.version import __version__

Json = dict[str, Any]

ANYTHING = "Read and checked by code."
TEXT_PARTS: Json = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["type", "text"],
                "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
            },
        },
        {"type": "null"},
    ]
}
MESSAGES: Json = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["role", "content"],
        "properties": {
            "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
            "content": TEXT_PARTS,
            "tool_calls": {"type": ["array", "null"]},
            "tool_call_id": {"type": ["string", "null"]},
        },
    },
}
IDS: Json = {"type": "array", "items": {"type": "integer", "minimum": 0}}
BY_HAND: dict[str, Json] = {
    "messages": MESSAGES,
    "prompt": {"anyOf": [{"type": "string"}, IDS, {"type": "array", "items": {"anyOf": [{"type": "string"}, IDS]}}]},
    "tools": {"type": ["array", "null"], "items": {"type": "object"}},
    "tool_choice": {"type": ["string", "object", "null"]},
    "response_format": {"type": ["object", "null"]},
    "structured_outputs": {"type": ["object", "null"]},
    "input": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]},
    "system": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}, {"type": "null"}]},
}
"""Fields that the structs leave open, by name."""

ERROR: Json = {
    "description": "What was wrong, and what to do.",
    "content": {"application/json": {"schema": {"type": "object", "required": ["error"]}}},
}


class Route(Protocol):
    """An entry of the table of routes, as far as it is described."""

    @property
    def method(self) -> str:
        """GET or POST."""

    @property
    def path(self) -> str:
        """With its parameters in braces."""

    @property
    def public(self) -> bool:
        """Needs no key."""

    @property
    def takes(self) -> type[msgspec.Struct] | None:
        """The type of its body."""

    @property
    def serve(self) -> Any:
        """The function."""


def describe(routes: Iterable[Route], model: str) -> Json:
    """The document (OpenAPI 3.1) of a server of `model`."""
    routes = list(routes)
    kinds = [route.takes for route in routes if route.takes is not None]
    _, schemas = msgspec.json.schema_components(kinds, schema_hook=_open, ref_template="#/components/schemas/{name}")
    for schema in schemas.values():
        for name, field in schema.get("properties", {}).items():
            if field.get("description") == ANYTHING:
                field |= BY_HAND.get(name, {})
            if name == "model":
                field["enum"] = [model, None] if "anyOf" in field else [model]
    paths: Json = {}
    for route in routes:
        paths.setdefault(route.path.replace(":path", ""), {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "quire", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _open(kind: type) -> Json:
    """The schema of a field whose checks are code: anything."""
    if kind is object:
        return {"description": ANYTHING}
    raise NotImplementedError(kind)


def _operation(route: Route) -> Json:
    said = inspect.getdoc(route.serve) or ""
    operation: Json = {
        "summary": said.splitlines()[0] if said else route.path,
        "security": [] if route.public else [{"key": []}],
        "responses": {"200": {"description": "The answer."}, "default": ERROR},
    }
    names = [part.strip("{}").removesuffix(":path") for part in route.path.split("/") if part.startswith("{")]
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if route.takes is not None:
        ref = {"$ref": f"#/components/schemas/{route.takes.__name__}"}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": ref}}}
    return operation
