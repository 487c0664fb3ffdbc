"""docs/quantization.md is what formats and providers say."""

import importlib
import importlib.util
from pathlib import Path
from pkgutil import iter_modules
from typing import get_args

import pytest

from quire.config.fields import Quantization
from quire.ops.registry import load_providers
from quire.platforms import native
from quire.quantization import formats

pytestmark = pytest.mark.torch
TOOL = Path(__file__).parent.parent.parent / "tools" / "make_quantization_docs.py"


def test_every_name_belongs_to_one_format_and_the_first_may_be_asked_for() -> None:
    modules = [importlib.import_module(f"{formats.__name__}.{each.name}") for each in iter_modules(formats.__path__)]
    names = [name for module in modules for name in module.METHODS]
    assert len(names) == len(set(names))
    assert {module.METHODS[0] for module in modules} <= set(get_args(Quantization))


@pytest.mark.skipif(not native.is_built(), reason="the table names the compiled kernels")
def test_the_document_is_up_to_date() -> None:
    load_providers(["batch_invariant"])  # other tests of the process may have, and the document must not tell
    spec = importlib.util.spec_from_file_location("make_quantization_docs", TOOL)
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.DOCUMENT.read_text(encoding="utf-8") == tool.render(), "run: python tools/make_quantization_docs.py"
