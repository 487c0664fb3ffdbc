"""A process that compiles kernels into Triton's cache: `python -m quire.kernels.triton.compiler`.

Reads lines of JSON: first `{"workers", "target"}`, then one line a kernel, as `ahead` notes them. Everything is
imported by the time that these come; then as many processes as were asked for are forked, each of which takes the next
kernel until none is left. It never touches a GPU. Status 0: all were compiled.
"""

import importlib
import json
import os
import struct
import sys
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend

from quire.base.lifeline import die_with_parent
from quire.ops.registry import load_providers

NUMBER = struct.Struct("<I")


def main() -> int:
    """Compile what standard input asks for."""
    die_with_parent()
    load_providers(["triton"])
    importlib.import_module("quire.kernels.triton.ahead").name_kernels()
    lines = [json.loads(line) for line in sys.stdin if line.strip()]
    if not lines:
        return 0  # nobody needs it any more
    head, *jobs = lines
    # What takes most constants takes longest.
    jobs.sort(key=lambda job: -len(job["data"]))
    target, launcher = GPUTarget(*head["target"]), launchers()
    source, sink = os.pipe()
    children = []
    for _ in range(min(head["workers"], len(jobs))):
        child = os.fork()
        if child == 0:
            os.close(sink)
            os._exit(work(source, jobs, target, launcher))
        children.append(child)
    os.close(source)
    # Written while they read, for a pipe does not hold many; each number is read whole.
    for number in range(len(jobs)):
        os.write(sink, NUMBER.pack(number))
    os.close(sink)
    ended = [os.waitpid(child, 0)[1] for child in children]
    return int(any(ended))


def work(source: int, jobs: list[dict[str, str]], target: GPUTarget, launcher: Any) -> int:
    """Compile the jobs whose numbers come from `source`; how many failed."""
    die_with_parent()
    failed = 0
    while number := os.read(source, NUMBER.size):
        try:
            compiled = compile_one(jobs[NUMBER.unpack(number)[0]], target)
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
    sys.exit(main())
