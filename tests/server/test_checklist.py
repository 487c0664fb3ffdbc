"""docs/checklist.md and docs/faults.md name tests that exist, and what they say of sources is so."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.plain

TESTS = Path(__file__).parents[1]
DOCS = TESTS.parent / "docs"
CHECKLIST = DOCS / "checklist.md"
FAULTS = DOCS / "faults.md"
ENTRIES = {"F": 30, "I-": 33}
"""Known faults and invariants of servers of this kind; their numbers have gaps."""


@pytest.mark.parametrize("document", [CHECKLIST, FAULTS], ids=lambda path: path.stem)
def test_every_test_that_is_named_exists(document: Path) -> None:
    text = document.read_text()
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", text)
    assert len(named) == text.count("::") > 0, "each is named with its file"
    assert not [f"{file}::{name}" for file, name in named if not _is_there(file, name)]


@pytest.mark.parametrize("letter", ENTRIES)
def test_every_fault_and_invariant_has_a_line(letter: str) -> None:
    lines = re.findall(rf"^\| ({letter}\d\d[^|]*)\|[^|]+\|([^|]+)\|$", FAULTS.read_text(), re.MULTILINE)
    assert sum(cell.count(letter) for cell, _ in lines) == ENTRIES[letter]
    assert all("::" in shown or "decided" in shown or "as F" in shown or "the same" in shown for _, shown in lines)


def test_the_wall_clock_only_dates_things() -> None:
    """Deadlines and durations are on clocks that never go back: `time.time` is read for `created` and the like only."""
    read = [
        line.strip()
        for path in (TESTS.parent / "quire").rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r"\btime\.time\(\)|datetime\.(now|utcnow)", line) and "bench" not in path.name
    ]
    assert read
    assert all(re.search(r"created|_ended = int|create_time|strftime", line) for line in read), read


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
