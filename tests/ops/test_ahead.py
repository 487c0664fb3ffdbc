"""Kernels that are compiled ahead are found where they are launched, by a process that compiled none of them."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton"),
]


def test_launches_find_what_was_compiled_ahead(tmp_path) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environ["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-m", "tests.ops.compiled_ahead"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["known"] == [False, True, False], done.stderr
    assert seen["noted"] == 3
    assert seen["found"] == [["_norm_kernel", True], ["_norm_kernel", True], ["_gate_kernel", True]]
