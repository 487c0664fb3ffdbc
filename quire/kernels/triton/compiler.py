"""A process that compiles kernels into Triton's cache: `python -m quire.kernels.triton.compiler WORKERS`.

Reads lines of JSON: first the target, `[backend, arch, warp_size]`, then a line for each kernel, as `ahead` notes them,
until there are no more. Everything is imported before processes are forked, each of which takes the next kernel as soon
as it is idle. It never touches a GPU. Status 0: all were compiled.
"""

import importlib
import json
import os
import sys
import warnings
from typing import IO, Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend

from quire.base.lifeline import die_with_parent
from quire.ops.registry import load_providers

MOST_WORKERS = 128


def main(workers: int) -> int:
    """Compile what standard input asks for."""
    die_with_parent()
    # Threads of numerical libraries stay behind; children call none of these.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    load_providers(["triton"])
    importlib.import_module("quire.kernels.triton.ahead").name_kernels()
    head = sys.stdin.readline()
    if not head:
        return 0  # nobody needs it any more
    target, launcher = GPUTarget(*json.loads(head)), launchers()
    idle, says_idle = os.pipe()
    children: list[tuple[int, IO[str]]] = []
    for index in range(min(workers, MOST_WORKERS)):
        source, sink = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(sink)
            for _, other in children:
                other.close()
            os._exit(work(index, says_idle, os.fdopen(source), target, launcher))
        os.close(source)
        children.append((child, os.fdopen(sink, "w")))
    for line in sys.stdin:
        sink_of = children[os.read(idle, 1)[0]][1]
        sink_of.write(line)
        sink_of.flush()
    for _, pipe in children:
        pipe.close()
    ended = [os.waitpid(child, 0)[1] for child, _ in children]
    return int(any(ended))


def work(index: int, says_idle: int, lines: IO[str], target: GPUTarget, launcher: Any) -> int:
    """Compile the kernels of `lines`, which come one by one as this process says that it is idle; how many failed."""
    die_with_parent()
    failed = 0
    while os.write(says_idle, bytes([index])) and (line := lines.readline()):
        try:
            compiled = compile_one(json.loads(line), target)
            if launcher is not None:
                launcher(compiled.src, compiled.metadata)
        except Exception as error:  # whoever launches the kernel hears of it
            print(f"quire: cannot compile ahead: {error}", file=sys.stderr)
            failed += 1
    return min(failed, 100)


def launchers() -> Any:
    """What makes the code on the host that launches a kernel, which Triton keeps, too; None where it has no driver."""
    try:
        return triton.runtime.driver.active.launcher_cls
    except RuntimeError:
        return None


def compile_one(job: dict[str, str], target: GPUTarget) -> Any:
    """The kernel of a line, compiled as its launch would have it, so that the cache has it under the same name."""
    kernel = getattr(importlib.import_module(job["module"]), job["name"])
    data = json.loads(job["data"])
    values = map(_constant, data["constant_vals"])
    constants = dict(zip(map(tuple, data["constant_keys"]), values, strict=True))
    attributes = dict(zip(map(tuple, data["attrs_keys"]), data["attrs_vals"], strict=True))
    signature = {name: _tuples(kind) for name, kind in data["signature"].items()}
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in data["options"].items()}
    parsed = make_backend(target).parse_options(options)
    return triton.compile(ASTSource(kernel, signature, constants, attributes), target=target, options=parsed.__dict__)


def _constant(value: Any) -> Any:
    if tl.dtype.is_dtype(value):
        return tl.dtype(value)
    return tl.constexpr(value["constexpr"]) if isinstance(value, dict) else value


def _tuples(kind: Any) -> Any:
    """JSON knows no tuples, kernels no lists."""
    return tuple(map(_tuples, kind)) if isinstance(kind, list) else kind


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
