"""The OpenAPI document: every route is in it, with the fields that its endpoint reads."""

import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from quire.messages.pooling import GENERATE
from quire.server.app import ROUTES
from quire.server.conversation.schema import Generating

pytestmark = pytest.mark.plain

CONFORMANCE = Path(__file__).parents[2] / "docs" / "conformance.md"


@pytest.fixture(scope="module")
def document(http: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = http.get("/openapi.json").json()
    return found


def test_every_route_is_described(document: dict[str, Any]) -> None:
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert described == {(route.method, route.path.replace(":path", "")) for route in ROUTES}
    for route in ROUTES:
        operation = document["paths"][route.path.replace(":path", "")][route.method.lower()]
        assert operation["summary"].endswith((".", "/")) and (operation["security"] == []) == route.public
        assert ("requestBody" in operation) == (route.takes is not None)


def test_every_body_is_named_and_what_generates_asks_for_a_model_that_does() -> None:
    assert [route.path for route in ROUTES if route.method == "POST" and route.takes is None] == [
        "/v1/responses/{response_id}/cancel"
    ]
    generating = [route for route in ROUTES if route.takes is not None and issubclass(route.takes, Generating)]
    assert generating and all(route.task == GENERATE for route in generating)


def test_every_route_has_a_line_for_clients() -> None:
    rows = re.findall(
        r"^\| ((?:GET|POST)[A-Z, ]*) \| (.*) \| (yes|no) \|$", CONFORMANCE.read_text("utf-8"), re.MULTILINE
    )
    told = {
        (methods.partition(",")[0], re.sub("{.*}", "{}", path), key == "no")
        for methods, cell, key in rows
        for path in re.findall("`(.*?)`", cell)
    }
    assert told == {(route.method, re.sub("{.*}", "{}", route.path), route.public) for route in ROUTES}


def test_every_body_has_the_fields_that_are_read(document: dict[str, Any]) -> None:
    for route in ROUTES:
        if route.takes is not None:
            schema = document["components"]["schemas"][route.takes.__name__]
            assert set(schema["properties"]) == set(route.takes.__struct_encode_fields__)
    chat = document["components"]["schemas"]["ChatRequest"]
    assert chat["required"] == ["model", "messages"]
    assert chat["properties"]["messages"]["items"]["required"] == ["role", "content"]


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    def references(node: Any) -> list[str]:
        if isinstance(node, dict):
            own = [node["$ref"]] if "$ref" in node else []
            return own + [found for value in node.values() for found in references(value)]
        return [found for value in node for found in references(value)] if isinstance(node, list) else []

    found = references(document)
    assert found
    for reference in found:
        node: Any = document
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]
