"""Text becomes a value of the field's type, or an error says where it came from and what is taken."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.base.errors import ConfigError
from quire.config.fields import section_of
from quire.config.parse import Kind, Value, convert, kind_of

pytestmark = pytest.mark.plain

BY_TYPE = {int: Kind(int, (), False), float: Kind(float, (), False), bool: Kind(bool, (), False)}


def field_kind(name: str) -> Kind:
    found = section_of(name)
    assert found is not None
    return kind_of(found[1])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("port", Kind(int, (), False)),
        ("max_model_len", Kind(int, (), True)),
        ("revision", Kind(str, (), True)),
        ("async_scheduling", Kind(bool, (), True)),
        ("scheduling_policy", Kind(str, ("fcfs", "priority", "lpm"), False)),
    ],
)
def test_kind_follows_the_annotation(name: str, kind: Kind) -> None:
    assert field_kind(name) == kind


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4k", 4000),
        ("4K", 4096),
        ("25.6k", 25600),
        ("1.1k", 1100),
        ("1.5K", 1536),
        ("2m", 2_000_000),
        ("16M", 16 << 20),
        ("4G", 4 << 30),
        ("1T", 1 << 40),
        (" 7 ", 7),
        ("-3", -3),
    ],
)
def test_whole_numbers(text: str, number: int) -> None:
    assert convert(BY_TYPE[int], text, "here") == number


@pytest.mark.parametrize(
    "text", ["", "k", "1.5", "0.0001k", "4kb", "4 k", "1e3", "0x10", "one", "nan", "9" * 5000, "٤"]
)
def test_texts_that_are_no_whole_number(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^flag --port: .*is not a whole number such as 4096"):
        convert(BY_TYPE[int], text, "flag --port")


@pytest.mark.parametrize(("text", "number"), [("0.9", 0.9), ("1", 1.0), ("1e-2", 0.01), ("-2", -2.0)])
def test_numbers(text: str, number: float) -> None:
    assert convert(BY_TYPE[float], text, "here") == number


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999", "", "half"])
def test_numbers_are_finite(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a number such as"):
        convert(BY_TYPE[float], text, "here")


@pytest.mark.parametrize(("text", "truth"), [("true", True), ("Yes", True), ("1", True), ("OFF", False), ("0", False)])
def test_switches(text: str, truth: bool) -> None:
    assert convert(BY_TYPE[bool], text, "here") is truth


def test_a_switch_takes_no_other_word() -> None:
    with pytest.raises(ConfigError, match="'maybe' is not true or false"):
        convert(BY_TYPE[bool], "maybe", "here")


@pytest.mark.parametrize("text", ["auto", "none", "AUTO"])
def test_auto_leaves_an_optional_number_unset(text: str) -> None:
    assert convert(field_kind("max_model_len"), text, "here") is None


def test_a_text_called_none_stays_a_text() -> None:
    assert convert(field_kind("served_model_name"), "none", "here") == "none"
    assert convert(field_kind("generation_config"), "none", "here") == "none"


def test_a_wrong_word_names_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"'float23' is not one of auto, float32, .*; did you mean float32"):
        convert(field_kind("dtype"), "float23", "here")


@pytest.mark.parametrize(
    ("name", "value"),
    [("port", 80), ("watermark", 0.5), ("watermark", 0), ("enable_prefix_caching", False), ("revision", None)],
)
def test_values_of_the_right_type_stay(name: str, value: Value) -> None:
    assert convert(field_kind(name), value, "here") == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", True),
        ("port", 80.0),
        ("port", None),
        ("port", [80]),
        ("watermark", float("nan")),
        ("enable_prefix_caching", 1),
        ("model", 3),
        ("dtype", 16),
    ],
)
def test_values_of_another_type_are_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=r"^file x\.yaml: .* is not "):
        convert(field_kind(name), value, "file x.yaml")


@given(st.integers(-(10**17), 10**17))
def test_digits_read_back(number: int) -> None:
    assert convert(BY_TYPE[int], str(number), "here") == number


@given(st.text(), st.sampled_from(["port", "max_model_len", "watermark", "async_scheduling", "dtype", "model"]))
def test_no_text_raises_anything_but_config_error(text: str, name: str) -> None:
    try:
        convert(field_kind(name), text, "here")
    except ConfigError as error:
        assert str(error).startswith("here: ")
