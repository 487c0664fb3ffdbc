"""Stand-ins for a torch that is missing, raises, ends its process or hangs while it is imported."""

import os
import subprocess
import sys
from pathlib import Path

TORCHES = {
    "missing": "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')",
    "raises": "raise RuntimeError('libcudart.so.99 is not there')",
    "aborts": "import os; os.abort()",
    "exits": "import os; os._exit(7)",
    "hangs": "import time; time.sleep(600)",
}


def environment(folder: Path, kind: str) -> dict[str, str]:
    """An environment in which `import torch` meets the stand-in called `kind`, laid down in `folder`."""
    package = folder / "torch"
    package.mkdir()
    (package / "__init__.py").write_text(TORCHES[kind])
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    }


def quire(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "quire.cli", *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=150, stdin=subprocess.DEVNULL)
