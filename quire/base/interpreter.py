"""Python begun again, for a process of quire's own: it must find the modules that its parent has found.

`python -m` looks into the current folder first: at another quire that lies there, or at a file named as a module is.
"""

import contextlib
import sys
from importlib.util import cache_from_source, find_spec
from pathlib import Path


def python() -> list[str]:
    """The interpreter and its flags. The child looks into the current folder only if this process does, too."""
    here = ""
    with contextlib.suppress(OSError):  # a folder that has been removed since is looked into by nobody
        here = str(Path.cwd())
    looks_here = not {"", here}.isdisjoint(sys.path)
    return [sys.executable] if looks_here else [sys.executable, "-P"]


def sources_of(package: str) -> Path | None:
    """The folder of a package that Python compiles anew at each start, for want of bytecode; None if there is some.

    Installers may leave it to the first import to write it, which may not, or must not.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None or Path(cache_from_source(spec.origin)).exists():
        return None
    return Path(spec.origin).parent
