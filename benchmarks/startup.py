"""Measures how soon quire answers without a model: `quire --version`, `quire --help`, `import quire`.

    python benchmarks/startup.py [RUNS]

Prints medians (20 runs unless told) and appends them to benchmarks/ledger/startup.jsonl. The interpreter's own start is
measured beside them, because it is most of the figure.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

from lib import ledger

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
    about = {"commit": ledger.commit(), "machine": ledger.machine(), "command": "python benchmarks/startup.py"}
    figure = {"metric": metric, "value": round(seconds, 4), "unit": "s", "runs": runs}
    ledger.append(ledger.LEDGER / "startup.jsonl", {**about, **figure})


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
