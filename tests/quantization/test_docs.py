"""docs/quantization.md is what formats and providers say."""

import importlib.util
from pathlib import Path

import pytest

from quire.ops.registry import load_providers
from quire.platforms import native

pytestmark = pytest.mark.torch
TOOL = Path(__file__).parent.parent.parent / "tools" / "make_quantization_docs.py"


@pytest.mark.skipif(not native.is_built(), reason="the table names the compiled kernels")
def test_the_document_is_up_to_date() -> None:
    load_providers(["batch_invariant"])  # other tests of the process may have, and the document must not tell
    spec = importlib.util.spec_from_file_location("make_quantization_docs", TOOL)
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.DOCUMENT.read_text(encoding="utf-8") == tool.render(), "run: python tools/make_quantization_docs.py"
