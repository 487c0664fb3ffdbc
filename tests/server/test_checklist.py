"""docs/checklist.md names tests that exist."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.plain

TESTS = Path(__file__).parents[1]
CHECKLIST = TESTS.parent / "docs" / "checklist.md"
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", CHECKLIST.read_text())))


def test_every_test_that_is_named_exists() -> None:
    missing = [f"{file}::{name}" for file, name in NAMED if not _is_there(file, name)]
    assert NAMED and not missing


def _is_there(file: str, name: str) -> bool:
    path = TESTS / (file if "/" in file else f"server/{file}")
    return path.is_file() and re.search(rf"^def {name}\(", path.read_text(), re.MULTILINE) is not None


def test_every_point_has_a_line() -> None:
    text = CHECKLIST.read_text()
    for letter, most in (("C", 69), ("P", 36)):
        found: set[int] = set()
        for cell in re.findall(rf"^\| ({letter}\d\d[^|]*)\|", text, re.MULTILINE):
            first, *last = [int(number) for number in re.findall(rf"{letter}(\d\d)", cell)]
            found |= {first, *last} | (set(range(first, last[-1] + 1)) if " to " in cell else set())
        assert found == set(range(1, most + 1))
