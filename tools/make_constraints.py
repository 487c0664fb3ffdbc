"""Writes constraints.txt: what pip takes today for quire with its extra `dev`, beside the torch that is pinned there.

    python tools/make_constraints.py

pip resolves in a dry run, as if nothing were installed; nothing is. Local parts of versions (+cpu) are left out, so
that the file means the same everywhere.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILE = ROOT / "constraints.txt"


def main() -> int:
    """Keep the comment and the pin of torch, renew all others."""
    old = FILE.read_text().splitlines()
    head = [line for line in old if line.startswith("#")]
    torch = next(line for line in old if line.startswith("torch=="))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    report = subprocess.run([*command, torch, f"{ROOT}[dev]"], check=True, capture_output=True, text=True).stdout
    found = [item["metadata"] for item in json.loads(report)["install"]]
    pins = {normal(each["name"]): each["version"].partition("+")[0] for each in found}
    del pins["quire"]
    FILE.write_text("\n".join([*head, *(f"{name}=={version}" for name, version in sorted(pins.items()))]) + "\n")
    print(f"{len(pins)} pins in {FILE.name}")
    return 0


def normal(name: str) -> str:
    """A package's name as the index spells it: `PyYAML` is `pyyaml`."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main())
