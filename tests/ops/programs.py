"""Programs beside the tests, which compile kernels: a process that interprets Triton's kernels cannot."""

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import pytest

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")


def said_by(name: str, **environ: str) -> Any:
    """What the program `tests.ops.NAME` prints as its last line, which is JSON; without Triton's interpreter."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", f"tests.ops.{name}"]
    done = subprocess.run(command, env=kept | environ, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
