"""Imports every module of quire and says which cannot be imported; run it where only the core is installed."""

import importlib
import pkgutil
import sys
from importlib.util import find_spec

import quire

OPTIONAL = {"quire.kernels.triton": "triton", "quire.models.transformers": "transformers"}
"""Packages that nobody imports but where they are asked for, and the library that each needs."""


def main() -> int:
    """1 if a module cannot be imported."""
    failed = 0
    absent = tuple(package for package, library in OPTIONAL.items() if find_spec(library) is None)
    print("left out:", *absent)
    # What cannot be imported is found below; here it is only not looked into.
    for module in pkgutil.walk_packages(quire.__path__, "quire.", onerror=lambda name: None):
        # Programs run when they are imported, and the compiled kernels (lib...) are no module of Python.
        if module.name.rpartition(".")[2].startswith(("__main__", "lib")) or module.name in absent:
            continue
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            failed += 1
            print(f"{module.name}: {error}")
    print(f"{failed} modules cannot be imported" if failed else "every module can be imported")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
