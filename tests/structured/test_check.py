"""What the validator says of structured outputs before anything is compiled."""

import pytest

from quire.base.errors import RequestError
from quire.messages.structured import MAX_NESTING, StructuredOutputsParams, check_structured, grammar_key

pytestmark = pytest.mark.plain


def nested(levels: int) -> dict:
    """A schema that is `levels` objects deep."""
    schema: dict = {"type": "string"}
    for _ in range(levels - 1):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    "wanted",
    [
        StructuredOutputsParams(json={"type": "object"}),
        StructuredOutputsParams(json='{"type": "object"}', disable_any_whitespace=True),
        StructuredOutputsParams(json=nested(MAX_NESTING)),
        StructuredOutputsParams(regex="a+", json_object=False),
        StructuredOutputsParams(choice=["a", "b"]),
        StructuredOutputsParams(grammar='start: "a"'),
        StructuredOutputsParams(json_object=True),
    ],
)
def test_every_form_is_taken(wanted):
    check_structured(wanted)


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        ({"json": {}}, "invalid_type"),
        (StructuredOutputsParams(), "invalid_value"),
        (StructuredOutputsParams(json_object=False), "invalid_value"),
        (StructuredOutputsParams(regex="a", choice=["a"]), "invalid_value"),
        (StructuredOutputsParams(json="notjson"), "invalid_schema"),
        (StructuredOutputsParams(json="[" * 100_000), "invalid_schema"),
        (StructuredOutputsParams(json="5"), "invalid_schema"),
        (StructuredOutputsParams(json={"a": {1, 2}, "b": object()}), "invalid_schema"),
        (StructuredOutputsParams(json=nested(MAX_NESTING + 1)), "invalid_schema"),
        (StructuredOutputsParams(json=nested(10_000)), "invalid_schema"),
        (StructuredOutputsParams(json={"enum": ["x" * 300_000]}), "invalid_schema"),
        (StructuredOutputsParams(regex=""), "invalid_schema"),
        (StructuredOutputsParams(regex="a\0"), "invalid_schema"),
        (StructuredOutputsParams(regex="a" * 20_000), "invalid_schema"),
        (StructuredOutputsParams(regex=5), "invalid_type"),
        (StructuredOutputsParams(regex="a\\\\\\"), "invalid_schema"),
        (StructuredOutputsParams(grammar="x" * 1_000_000), "invalid_schema"),
        (StructuredOutputsParams(choice=[]), "invalid_schema"),
        (StructuredOutputsParams(choice=[""]), "invalid_schema"),
        (StructuredOutputsParams(choice=["a"] * 100_000), "invalid_schema"),
        (StructuredOutputsParams(choice=[1]), "invalid_type"),
    ],
)
def test_what_is_wrong_is_refused_by_name(wanted, code):
    with pytest.raises(RequestError) as caught:
        check_structured(wanted)
    assert (caught.value.param, caught.value.code) == ("structured_outputs", code)
    assert len(caught.value.message) < 200


def test_keys_tell_grammars_apart():
    one, other = StructuredOutputsParams(regex="a"), StructuredOutputsParams(choice=["a"])
    assert grammar_key(one) == grammar_key(StructuredOutputsParams(regex="a")) != grammar_key(other)
    assert grammar_key(None) is None
