"""Python begun again, for a process of quire's own: it must find the modules that its parent has found.

`python -m` looks into the current folder first: at another quire that lies there, or at a file named as a module is.
"""

import sys
from pathlib import Path


def python() -> list[str]:
    """The interpreter and its flags. The child looks into the current folder only if this process does, too."""
    looks_here = not {"", str(Path.cwd())}.isdisjoint(sys.path)
    return [sys.executable] if looks_here else [sys.executable, "-P"]
