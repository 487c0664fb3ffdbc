"""One JSON line per measured figure, appended to a ledger, and what every line says of its circumstances."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

LEDGER = Path(__file__).parents[1] / "ledger"
COMMIT = "BENCH_COMMIT"
"""Names the commit where a copy of the tree is measured that has no git history."""


def commit() -> str:
    """The commit that is measured, with a plus sign if files have changed since; "unknown" where nothing tells."""
    if os.environ.get(COMMIT):
        return os.environ[COMMIT]
    folder = Path(__file__).parent
    words = ["git", "-C", str(folder), "describe", "--always", "--abbrev=10", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(words, capture_output=True, text=True).stdout.strip() or "unknown"
    except FileNotFoundError:
        return "unknown"


def machine() -> str:
    """The processor, its threads and memory, as lines of a ledger name it."""
    # Peers are measured in environments of their own, which have no quire.
    from quire.platforms.host import look

    host = look()
    return f"{host.cpu}, {os.cpu_count()} threads, {host.memory_bytes / 2**30:.0f} GiB"


def command(without: tuple[str, ...] = ("--ledger", "--commit")) -> str:
    """This process's command line, less flags (with their values) that say only where results go.

    Where environments lie is said by no ledger.
    """
    words = [f"benchmarks/{Path(sys.argv[0]).name}"]
    before = ""
    for word in sys.argv[1:]:
        if before not in without and not word.startswith(tuple(f"{flag}=" for flag in without)) and word not in without:
            words.append("ENVIRONMENTS" if before == "--environments" else word)
        before = "" if before in without else word
    return "python " + " ".join(words)


def append(file: Path, line: Mapping[str, object]) -> None:
    """Append one figure, dated now."""
    file.parent.mkdir(parents=True, exist_ok=True)
    dated = {"date": datetime.now(UTC).isoformat(timespec="seconds"), **line}
    with file.open("a", encoding="utf-8") as ledger:
        ledger.write(json.dumps(dated) + "\n")
