"""What tests of Triton's kernels need: the interpreter here, or a program beside the tests that compiles.

A process that interprets Triton's kernels cannot compile them.
"""

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETER = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton's kernels can run in this process."""

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="needs triton")
needs_interpreter = pytest.mark.skipif(not INTERPRETER, reason="needs Triton's interpreter")


if INTERPRETER:
    from triton.runtime import interpreter

    _plain = interpreter._convert_float

    def _rounded(values: Any, given: Any, wanted: Any, mode: Any) -> Any:
        """float32 to bfloat16 as GPUs do, to the nearest: the interpreter cuts, so all results would be too small."""
        if (str(given), str(wanted)) != ("fp32", "bf16"):
            return _plain(values, given, wanted, mode)
        bits = np.ascontiguousarray(values).view(np.uint32).astype(np.uint64)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return np.where(np.isnan(values), (bits >> 16) | 0x40, nearest).astype(np.uint16)

    interpreter._convert_float = _rounded


def said_by(name: str, **environ: str) -> Any:
    """What the program `tests.ops.NAME` prints as its last line, which is JSON; without Triton's interpreter."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", f"tests.ops.{name}"]
    done = subprocess.run(command, env=kept | environ, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
