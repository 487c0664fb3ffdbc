"""Measures how soon quire answers without a model: `quire --version`, `quire --help`, `import quire`.

    python benchmarks/startup.py [RUNS]

Prints medians (20 runs unless told) and appends them to benchmarks/ledger/startup.jsonl. The interpreter's own start is
measured beside them, because it is most of the figure.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from quire.platforms.host import look

LEDGER = Path(__file__).parent / "ledger" / "startup.jsonl"
QUIRE = str(Path(sys.executable).parent / "quire")
COMMANDS = {
    "python starts": [sys.executable, "-c", "pass"],
    "import quire": [sys.executable, "-c", "import quire"],
    "quire --version": [QUIRE, "--version"],
    "quire --help": [QUIRE, "--help"],
}
LIMITS_S = {"import quire": 0.3, "quire --version": 0.15, "quire --help": 0.3}


def main(runs: int = 20) -> int:
    """Measure, print, record; 1 if a promise is not kept."""
    late = False
    for metric, command in COMMANDS.items():
        seconds = median_s(command, runs)
        record(metric, seconds, runs)
        limit = LIMITS_S.get(metric)
        late |= limit is not None and seconds >= limit
        print(f"{metric:<18}{seconds * 1e3:7.1f} ms" + (f"   promised: under {limit * 1e3:.0f} ms" if limit else ""))
    return 1 if late else 0


def median_s(command: list[str], runs: int) -> float:
    """Median wall-clock seconds of `command` from start to exit, after one run that warms the file cache."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def record(metric: str, seconds: float, runs: int) -> None:
    """Append one line to the ledger."""
    host = look()
    entry = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": f"{host.cpu}, {os.cpu_count()} threads, {host.memory_bytes / 2**30:.0f} GiB",
        "metric": metric,
        "value": round(seconds, 4),
        "unit": "s",
        "runs": runs,
        "command": "python benchmarks/startup.py",
    }
    LEDGER.parent.mkdir(exist_ok=True)
    with LEDGER.open("a") as ledger:
        ledger.write(json.dumps(entry) + "\n")


def commit() -> str:
    """The commit that is measured, with a plus sign if files have changed since; "unknown" without git."""
    folder = Path(__file__).parent
    words = ["git", "-C", str(folder), "describe", "--always", "--abbrev=10", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(words, capture_output=True, text=True).stdout.strip() or "unknown"
    except FileNotFoundError:
        return "unknown"


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
