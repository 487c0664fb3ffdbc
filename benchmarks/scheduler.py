"""How long the scheduler takes per step: `plan` and `commit` with a device that computes nothing.

    python benchmarks/scheduler.py [--depth 2] [--steps 400]

Measures a steady batch (every sequence decodes) at several numbers of running sequences, and appends one JSON line for
each to `benchmarks/ledger/scheduler.jsonl`: the median and the 99th percentile over steps, in microseconds, of `plan`
and `commit` together, and the limit that the design sets.
"""

import argparse
import gc
import json
import platform
import subprocess
import time
from collections import deque
from pathlib import Path
from statistics import median

from quire.messages.params import SamplingParams
from quire.messages.plan import StepPlan, StepResult
from quire.messages.request import Request
from quire.messages.state import GroupLayout, Layout, StateSpec
from quire.scheduler.limits import Limits
from quire.scheduler.scheduler import Scheduler

LIMITS_US = {1: 100, 64: 300, 256: 700, 1024: 2000}
"""Running sequences to microseconds a step."""

LEDGER = Path(__file__).parent / "ledger" / "scheduler.jsonl"
PROMPT_LEN = 40
WARM_UP_STEPS = 50


def busy_scheduler(running: int, steps: int, page_size: int) -> Scheduler:
    """A scheduler with so many requests, none of which ends within the measurement."""
    max_len = PROMPT_LEN + steps + 4 * WARM_UP_STEPS
    pages = running * (max_len // page_size + 2)
    layout = Layout([GroupLayout(StateSpec(1), 1, page_size, pages)], max_len)
    scheduler = Scheduler(Limits(max_num_seqs=running, max_num_batched_tokens=running * PROMPT_LEN), layout)
    for i in range(running):
        params = SamplingParams(max_tokens=None, ignore_eos=True)
        prompt = [i] * (PROMPT_LEN - i % page_size)  # so that some fill a page in every step
        scheduler.add(Request(id=str(i), token_ids=prompt, params=params), 0.0)
    return scheduler


def null_result(plan: StepPlan) -> StepResult:
    """What a device without a model answers."""
    rows = [grant.row for grant in plan.grants if grant.samples]
    return StepResult(plan.step, rows, [7] * len(rows))


def measure(running: int, depth: int, steps: int, page_size: int) -> list[float]:
    """Microseconds of `plan` and `commit` in each of `steps` steady steps."""
    scheduler = busy_scheduler(running, steps, page_size)
    flights: deque[StepResult] = deque()
    times = []
    for step in range(WARM_UP_STEPS + steps):
        start = time.perf_counter()
        plan = scheduler.plan(0.0)
        planned = time.perf_counter()
        assert plan is not None
        flights.append(null_result(plan))
        resumed = time.perf_counter()
        if len(flights) == depth:
            scheduler.commit(flights.popleft())
        if step >= WARM_UP_STEPS:
            assert len(plan.grants) == running
            times.append((planned - start + time.perf_counter() - resumed) * 1e6)
    return times


def entry(running: int, depth: int, steps: int, page_size: int) -> dict[str, object]:
    """One line of the ledger."""
    times = sorted(measure(running, depth, steps, page_size))
    return {
        "what": "scheduler plan + commit, steady",
        "command": f"python benchmarks/scheduler.py --depth {depth} --steps {steps} --page-size {page_size}",
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip(),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "running": running,
        "median_us": round(median(times), 1),
        "p99_us": round(times[int(len(times) * 0.99)], 1),
        "limit_us": LIMITS_US[running],
    }


def main() -> None:
    """Measure, print, append."""
    parser = argparse.ArgumentParser(description="Time of the scheduler per step")
    parser.add_argument("--depth", type=int, default=2, help="plans in flight")
    parser.add_argument("--steps", type=int, default=400, help="steps to measure")
    parser.add_argument("--page-size", type=int, default=16, help="tokens per page")
    options = parser.parse_args()
    LEDGER.parent.mkdir(exist_ok=True)
    for running in LIMITS_US:
        gc.collect()
        gc.freeze()  # as the engine does when it is ready
        line = entry(running, options.depth, options.steps, options.page_size)
        print(line["running"], line["median_us"], line["p99_us"], f"limit {line['limit_us']}")
        with LEDGER.open("a") as ledger:
            ledger.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
