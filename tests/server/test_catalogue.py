"""The catalogue of known attacks is whole, and every case and test that it names exists."""

import re
from pathlib import Path

import pytest

from tests.server.cases import ALL
from tests.server.catalogue import ABSENT, COVERED, DIFFERENT
from tests.server.form_cases import BOMB_CASE, DEAD_END, FORMATS

pytestmark = pytest.mark.plain

HERE = Path(__file__).parent
NAMES = [case.name for case in (*ALL, *FORMATS, BOMB_CASE, DEAD_END)]
ENTRIES = 154


def test_every_number_is_in_one_place() -> None:
    numbers = [*COVERED, *ABSENT, *DIFFERENT]
    assert len(numbers) == len(set(numbers)) == ENTRIES


@pytest.mark.parametrize("number", sorted(COVERED))
def test_what_is_named_exists(number: str) -> None:
    for name in COVERED[number]:
        file, _, function = name.partition(".py::")
        if not function:
            assert any(case.startswith(name) for case in NAMES), name
            continue
        path = HERE.parents[1] / f"{file}.py" if "/" in file else HERE / f"{file}.py"
        assert re.search(rf"^(async )?def {function}\(", path.read_text(), re.MULTILINE), name
