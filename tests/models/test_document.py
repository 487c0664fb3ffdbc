"""docs/models.md is what the files of the families and their tests say, and no family is without proof."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.plain

TOOL = Path(__file__).parent.parent.parent / "tools" / "make_models_doc.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_models_doc", TOOL)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_the_document_is_up_to_date(tool: ModuleType) -> None:
    assert tool.DOCUMENT.read_text(encoding="utf-8") == tool.render(), "run: python tools/make_models_doc.py"


def test_every_family_is_proven(tool: ModuleType) -> None:
    assert tool.unproven() == []


def test_a_family_with_a_file_is_not_among_those_without(tool: ModuleType) -> None:
    assert tool.listed_twice() == [], "take them out of tests/models/others.py"


def test_most_files_are_short(tool: ModuleType) -> None:
    lengths = sorted(len(file.read_text(encoding="utf-8").splitlines()) for file in tool.families())
    assert lengths[len(lengths) // 2] < 120
