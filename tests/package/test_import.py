"""What importing costs and changes: `import quire` and the folders that promise to stay free of torch."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.plain

TORCH_FREE = [
    *("base", "checkpoint", "config", "messages", "scheduler", "kvcache", "tokenizer", "chat", "server", "cli"),
    *("platforms", "engine.async_llm", "engine.client", "engine.front", "engine.launch", "engine.outputs"),
]
HEAVY = ["torch", "triton", "transformers", "numpy", "scipy"]


def in_child(code: str) -> object:
    """The JSON that `code` prints in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_importing_quire_changes_nothing() -> None:
    code = (
        "import os, sys, threading, warnings, builtins, json\n"
        "before = dict(os.environ), vars(builtins).copy(), list(warnings.filters), sys.path[:], sys.excepthook\n"
        "import quire\n"
        "after = dict(os.environ), vars(builtins).copy(), list(warnings.filters), sys.path[:], sys.excepthook\n"
        "print(json.dumps([before == after, threading.active_count(), sorted(sys.modules)]))"
    )
    same, threads, modules = in_child(code)  # type: ignore[misc]
    assert same
    assert threads == 1
    assert not {name.split(".")[0] for name in modules} & {*HEAVY, "msgspec", "zmq", "asyncio", "starlette", "uvicorn"}


def test_the_public_names_are_there() -> None:
    code = "import json, quire; print(json.dumps([sorted(quire.__all__), sorted(dir(quire))]))"
    public, listed = in_child(code)  # type: ignore[misc]
    assert {"LLM", "AsyncLLM", "SamplingParams", "RequestOutput", "CompletionOutput"} <= set(public) <= set(listed)


def test_an_unknown_name_is_an_attribute_error() -> None:
    import quire

    with pytest.raises(AttributeError, match="no attribute 'LLMM'"):
        _ = quire.LLMM


@pytest.mark.parametrize("package", TORCH_FREE)
def test_no_torch_however_indirectly(package: str) -> None:
    code = (
        "import importlib, json, pkgutil, sys\n"
        f"top = importlib.import_module('quire.{package}')\n"
        "for module in pkgutil.walk_packages(getattr(top, '__path__', []), top.__name__ + '.'):\n"
        "    if not module.name.endswith('__main__'):\n"
        "        importlib.import_module(module.name)\n"
        f"print(json.dumps([name for name in {HEAVY[:3]} if name in sys.modules]))"
    )
    assert in_child(code) == []
