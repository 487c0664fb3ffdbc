"""The strict parser: it agrees with Python's wherever a body is good, and takes linear time where it is not."""

import contextlib
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.base.errors import RequestError
from quire.server.text import strict_json
from quire.server.text.strict_json import MAX_DEPTH, parse_object

pytestmark = pytest.mark.plain

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=15)


@settings(max_examples=60)
@given(st.dictionaries(st.text(), VALUES), st.booleans())
def test_good_bodies_mean_what_python_says(value: dict[str, object], ascii_only: bool) -> None:
    raw = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    assert parse_object(raw) == value


def test_a_number_too_large_is_refused_also_where_its_key_occurs_again() -> None:
    for raw, param in ((b'{"a": 1e999, "a": 1}', None), (b'{"a": [{"b": 1e999}]}', "a[0].b"), (b'{"x": 1e999}', "x")):
        with pytest.raises(RequestError) as refused:
            parse_object(raw)
        assert (refused.value.code, refused.value.param) == ("invalid_value", param), raw


def test_half_a_surrogate_pair_is_found_in_keys_and_values() -> None:
    for raw, path in (
        (b'{"a": ["", {"b": "\\ud83d"}]}', "a[1].b"),
        (b'{"\\ud83d": 1}', None),
        (b'{"a": "\\ud83d\\ude00"}', ""),
    ):
        if path == "":
            assert parse_object(raw) == {"a": "\U0001f600"}
            continue
        with pytest.raises(RequestError) as refused:
            parse_object(raw)
        assert refused.value.code == "invalid_unicode"
        assert path is None or refused.value.param == path


@given(st.binary(max_size=200))
def test_any_bytes_are_an_object_or_a_refusal(raw: bytes) -> None:
    with contextlib.suppress(RequestError):
        assert isinstance(parse_object(raw), dict)


def test_brackets_in_strings_are_no_depth() -> None:
    text = '[{"' * 1000 + '\\"'
    assert parse_object(json.dumps({"a": text, "b": [[]] * 100}).encode()) == {"a": text, "b": [[]] * 100}


def test_exactly_the_permitted_depth() -> None:
    inner = MAX_DEPTH - 1
    parse_object(b'{"a":' + b"[" * inner + b"]" * inner + b"}")
    with pytest.raises(RequestError, match="64 levels"):
        parse_object(b'{"a":' + b"[" * (inner + 1) + b"]" * (inner + 1) + b"}")


@pytest.mark.parametrize(
    "piece",
    [
        b"[",
        b'"',
        b'\\"',
        b'"\\',
        b'{"',
        b'"[{',
        b"[],",
        b"[" * 60 + b"]" * 60,
        b'[{"a":1},',
        b'"\\ud800',
        b'{"\\ud83d":',
    ],
    ids=repr,
)
def test_no_body_costs_more_than_its_length(piece: bytes) -> None:
    def cost(size: int) -> float:
        raw = b'{"x": [' + piece * (size // len(piece))
        began = time.process_time()
        with pytest.raises(RequestError):
            parse_object(raw)
        return time.process_time() - began

    assert cost(4_000_000) < 20


@given(st.text(alphabet='"\\\\a[]{},:', max_size=60), st.integers(1, 9))
def test_strings_are_left_out_whatever_the_pieces(text: str, piece: int) -> None:
    document = json.dumps({"a": [text, {text: [text]}]}).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strict_json, "PIECE_BYTES", piece)
        assert strict_json._outside_strings(document) == b"{: [, {: []}]}"
        unclosed = document[:-1] + b', "' + text.encode().replace(b'"', b"")
        assert strict_json._outside_strings(unclosed) == b"{: [, {: []}], "
