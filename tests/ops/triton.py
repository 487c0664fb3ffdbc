"""What tests of Triton's kernels need: the interpreter here, or a program beside the tests that compiles.

A process that interprets Triton's kernels cannot compile them.
"""

import importlib.util
import json
import os
import subprocess
import sys
from bisect import bisect_right
from collections.abc import Iterator
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

    class Bounds:
        """Triton's interpreter, with memory that no argument of the running kernel holds out of bounds.

        It reads and writes wherever a pointer leads, as a GPU does.
        """

        def __init__(self, plain: Any) -> None:
            self._plain = plain
            self._begins: list[int] = []
            self._ends: list[int] = []

        def __getattr__(self, name: str) -> Any:
            return getattr(self._plain, name)

        def allow(self, tensors: list[Any]) -> None:
            """Whole storages: what lies beside a view is somebody's, too."""
            held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
            self._begins = sorted(held)
            self._ends = [begin + held[begin] for begin in self._begins]

        def load(self, pointers: Any, mask: Any, other: Any, dtype: Any) -> Any:
            self._check("reads", pointers, mask, np.dtype(dtype).itemsize)
            return self._plain.load(pointers, mask, other, dtype)

        def store(self, pointers: Any, values: Any, mask: Any) -> Any:
            self._check("writes", pointers, mask, np.asarray(values).itemsize)
            return self._plain.store(pointers, values, mask)

        def atomic_rmw(self, kind: Any, pointers: Any, values: Any, mask: Any, order: Any) -> Any:
            self._check("changes", pointers, mask, np.asarray(values).itemsize)
            return self._plain.atomic_rmw(kind, pointers, values, mask, order)

        def atomic_cas(self, pointers: Any, expected: Any, values: Any, order: Any) -> Any:
            self._check("changes", pointers, np.ones_like(pointers, dtype=bool), np.asarray(values).itemsize)
            return self._plain.atomic_cas(pointers, expected, values, order)

        def _check(self, does: str, pointers: Any, mask: Any, size: int) -> None:
            wanted, mask = np.asarray(pointers), np.asarray(mask)
            wanted = wanted if mask.all() else wanted[mask.astype(bool)]
            if not wanted.size:
                return
            aligned = not int(np.bitwise_or.reduce(wanted, axis=None)) & (size - 1)
            assert aligned, f"a kernel {does} numbers of {size} bytes off their alignment"
            # Nearly always all lie in one tensor.
            first, last = int(wanted.min()), int(wanted.max())
            if not self._holds(first, last + size):
                inside = all(self._holds(at, at + size) for at in np.unique(wanted).tolist())
                assert inside, f"a kernel {does} memory that none of its arguments holds"

        def _holds(self, begin: int, end: int) -> bool:
            owner = bisect_right(self._begins, begin) - 1
            return owner >= 0 and end <= self._ends[owner]

    BOUNDS = Bounds(interpreter._interpreter)
    interpreter._interpreter = BOUNDS
    _taken = interpreter.GridExecutor._init_args_hst

    def _within(executor: Any, given: Any, named: Any) -> Any:
        found, options = _taken(executor, given, named)
        BOUNDS.allow(list(_tensors([*found, *options.values()])))
        return found, options

    interpreter.GridExecutor._init_args_hst = _within


def _tensors(values: Any) -> Iterator[Any]:
    """Those among the arguments of a kernel, in tuples and descriptors, too."""
    for value in values:
        if hasattr(value, "data_ptr"):
            yield value
        elif isinstance(value, tuple):
            yield from _tensors(value)
        elif hasattr(value, "base"):
            yield value.base


def said_by(name: str, **environ: str) -> Any:
    """What the program `tests.ops.NAME` prints as its last line, which is JSON; without Triton's interpreter."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", f"tests.ops.{name}"]
    done = subprocess.run(command, env=kept | environ, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
