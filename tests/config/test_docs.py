"""docs/configuration.md is what the dataclasses say."""

import importlib.util
from pathlib import Path

import pytest

pytestmark = pytest.mark.plain

TOOL = Path(__file__).parent.parent.parent / "tools" / "make_config_docs.py"


def test_the_document_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("make_config_docs", TOOL)
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.DOCUMENT.read_text(encoding="utf-8") == tool.render(), "run: python tools/make_config_docs.py"
