"""What tests of Triton's kernels need: the interpreter here, or a program beside the tests that compiles.

A process that interprets Triton's kernels cannot compile them.
"""

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import pytest

HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETER = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton's kernels can run in this process."""

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="needs triton")
needs_interpreter = pytest.mark.skipif(not INTERPRETER, reason="needs Triton's interpreter")


def said_by(name: str, **environ: str) -> Any:
    """What the program `tests.ops.NAME` prints as its last line, which is JSON; without Triton's interpreter."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", f"tests.ops.{name}"]
    done = subprocess.run(command, env=kept | environ, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
