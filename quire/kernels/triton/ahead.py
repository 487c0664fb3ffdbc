"""Compiling Triton's kernels ahead: notes what launches ask for, and has it compiled into Triton's cache.

Another process compiles (`compiler`), which has torch and the kernels in memory by the time that it is needed, and
forks. A file in the cache says for which runs all has been done.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import triton
from triton.runtime import driver
from triton.runtime.cache import triton_key
from triton.runtime.jit import JITFunction

from quire.base.interpreter import python
from quire.ops.ahead import AHEAD

PATIENCE_S = 300.0
"""Nothing compiles for longer; then kernels are compiled as they are launched."""


class _Skipped:
    """Stands in Triton's memory for a kernel that is being compiled elsewhere: launching it does nothing."""

    function = packed_metadata = None

    def launch_metadata(self, *given: object) -> None:
        """Nothing is launched."""

    def run(self, *given: object) -> None:
        """As a launch."""


class Compiler:
    """See `quire.ops.ahead.Ahead`.

    Args:
        workers: processes that compile.
    """

    def __init__(self, workers: int) -> None:
        # Triton names what it keeps by a hash of its whole library, which it would read when a kernel is first wanted.
        Thread(target=triton_key, name="quire-triton-key", daemon=True).start()
        name_kernels()
        self._workers = workers
        self._helper: subprocess.Popen[str] | None = None
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._skipped: list[tuple[dict[str, Any], str]] = []

    def knows(self, run: str) -> bool:
        """See Ahead."""
        return _mark(run).is_file()

    def begin(self) -> None:
        """See Ahead."""
        words = [*python(), "-m", "quire.kernels.triton.compiler", str(self._workers)]
        self._helper = helper = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        # It reads no further than it compiles.
        Thread(target=_hand_over, args=(self._lines, helper), name="quire-ahead", daemon=True).start()
        target = driver.active.get_current_target()
        self._lines.put(json.dumps([target.backend, target.arch, target.warp_size]))

    @contextmanager
    def noting(self) -> Iterator[None]:
        """See Ahead."""
        runtime = triton.knobs.runtime
        kept, runtime.jit_cache_hook = runtime.jit_cache_hook, self._note
        try:
            yield
        finally:
            runtime.jit_cache_hook = kept
            for cache, key in self._skipped:
                del cache[key]
            self._skipped.clear()

    def compile(self, run: str) -> None:
        """See Ahead."""
        helper, self._helper = self._helper, None
        if helper is None:
            return
        self._lines.put(None)
        try:
            status = helper.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            helper.kill()
            status = helper.wait()
        if status == 0:
            _mark(run).touch()

    def _note(self, *, key: str, fn: Any, compile: dict[str, Any], **rest: object) -> bool:
        """Triton calls this with what it lacks; True keeps it from compiling and launching."""
        self._lines.put(json.dumps({"module": fn.module, "name": fn.name, "data": compile["specialization_data"]}))
        cache = fn.jit_function.device_caches[driver.active.get_current_device()][0]
        cache[key] = _Skipped()
        self._skipped.append((cache, key))
        return True


def _hand_over(lines: "SimpleQueue[str | None]", helper: "subprocess.Popen[str]") -> None:
    """Give `helper` all lines until None comes."""
    assert helper.stdin is not None
    # One that has ended compiles nothing: kernels are compiled as they are launched.
    with suppress(OSError), helper.stdin as pipe:
        while (line := lines.get()) is not None:
            pipe.write(line + "\n")
            pipe.flush()


def name_kernels() -> None:
    """Let Triton work out under which names it keeps kernels, in one order for every process.

    A name depends on which functions it has looked through before: on what else was launched.
    """
    for module in sorted(name for name in sys.modules if name.startswith(__package__)):
        for name, kernel in sorted(vars(sys.modules[module]).items()):
            if isinstance(kernel, JITFunction) and kernel.module == module:
                assert kernel.cache_key, name


def _mark(run: str) -> Path:
    """What says that the kernels of `run`, as these sources have them, are in the cache."""
    seen = hashlib.sha256(f"{run} {triton.__version__} {driver.active.get_current_target()}".encode())
    for source in sorted(Path(__file__).parent.rglob("*.py")):
        seen.update(source.read_bytes())
    return Path(triton.knobs.cache.dir) / f"quire-{seen.hexdigest()}"


AHEAD["triton"] = Compiler
