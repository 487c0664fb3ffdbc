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
from typing import Any

import triton
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from quire.ops.ahead import AHEAD

PATIENCE_S = 300.0
"""Nothing compiles for longer; then kernels are compiled as they are launched."""


class Compiler:
    """See `quire.ops.ahead.Ahead`.

    Args:
        workers: processes that compile.
    """

    def __init__(self, workers: int) -> None:
        name_kernels()
        self._workers = workers
        self._jobs: dict[tuple[str, str], str] = {}
        self._helper: subprocess.Popen[str] | None = None

    def knows(self, run: str) -> bool:
        """See Ahead."""
        return _mark(run).is_file()

    def begin(self) -> None:
        """See Ahead."""
        words = [sys.executable, "-m", "quire.kernels.triton.compiler"]
        self._helper = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """See Ahead."""
        runtime = triton.knobs.runtime
        kept, runtime.jit_cache_hook = runtime.jit_cache_hook, self._note
        try:
            yield
        finally:
            runtime.jit_cache_hook = kept

    def compile(self, run: str) -> None:
        """See Ahead."""
        helper, self._helper = self._helper, None
        if helper is None:
            return
        target = driver.active.get_current_target()
        head = {"workers": self._workers, "target": [target.backend, target.arch, target.warp_size]}
        with suppress(subprocess.TimeoutExpired, OSError):
            helper.communicate("\n".join([json.dumps(head), *self._jobs.values()]), PATIENCE_S)
        if helper.poll() is None:
            helper.kill()
        if helper.wait() == 0:
            _mark(run).touch()

    def _note(self, *, key: str, fn: Any, compile: dict[str, Any], **rest: object) -> bool:
        """Triton calls this with what it lacks; True keeps it from compiling and launching."""
        data = compile["specialization_data"]
        self._jobs[fn.name, key] = json.dumps({"module": fn.module, "name": fn.name, "data": data})
        return True


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
