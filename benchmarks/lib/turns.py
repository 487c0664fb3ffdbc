"""Engines as processes that take turns at the workloads of the CPU table: a slow moment of the machine meets all.

Every engine is asked for every figure once; later rounds ask only those that count: ours, and the two best peers of
each workload. Each figure goes to `seen` at once, so a run that is cut short leaves what it has measured. Called by
`benchmarks/cpu_peers.py`; it knows no engine but by the command that starts it (see `lib/peer.py`).
"""

import json
import select
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from .cpu_workloads import WORKLOADS, lower_is_better

START = "E"
"""The label of the time from the start of a process to its first token."""

LABELS = (*WORKLOADS, START)
BEST = 2
"""Peers of a workload that later rounds ask."""

SLOW_START = 10.0
"""Seconds from which an engine is not started a second time."""

PATIENCE = 600.0
"""Seconds after which an engine that does not answer is given up."""


@dataclass
class Peer:
    """An engine with its process and figures.

    Attributes:
        name: "engine:precision".
        log: gets what it prints.
        figures: workload to values, and `bandwidths` to what the probe said just before each.
        failure: why it takes no more turns, or empty.
    """

    name: str
    command: list[str]
    log: Path
    process: subprocess.Popen[str] | None = None
    figures: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    bandwidths: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    failure: str = ""

    @property
    def ours(self) -> bool:
        """Whether it is this project."""
        return self.name.startswith("quire")

    def start(self) -> float:
        """Seconds from the start of a new process to its first token."""
        self.stop()
        with self.log.open("a") as log:
            begin = time.perf_counter()
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(self.command, stdin=pipe, stdout=pipe, stderr=log, text=True)
        self._answer(self.process.stdout)
        return time.perf_counter() - begin

    def seconds(self, prompts: list[list[int]], outputs: list[int]) -> float:
        """How long these requests take."""
        assert self.process is not None and self.process.stdin is not None
        self.process.stdin.write(json.dumps({"prompts": prompts, "outputs": outputs}) + "\n")
        self.process.stdin.flush()
        return float(self._answer(self.process.stdout)["seconds"])

    def figure(self, label: str, seed: int) -> float:
        """The figure of a workload. No prompt comes twice: engines remember prefixes."""
        if label == START:
            return self.start()
        work, first = WORKLOADS[label](2 * seed), WORKLOADS[label](2 * seed + 1)
        alone = self.seconds(first.prompts, [1] * len(first.prompts)) if work.metric == "decode tok/s" else 0.0
        return work.score(self.seconds(work.prompts, work.outputs), alone)

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def _answer(self, stream: IO[str] | None) -> dict[str, float]:
        assert stream is not None
        line = stream.readline() if select.select([stream], [], [], PATIENCE)[0] else ""
        if not line:
            raise RuntimeError(f"{self.name} gave no answer; see {self.log}")
        return dict(json.loads(line))


def contenders(peers: list[Peer], label: str) -> list[Peer]:
    """Who is asked for another figure: ours, and the best of the others by their medians so far."""
    able = [one for one in peers if one.figures[label] and not one.failure]
    if label == START:
        able = [one for one in able if statistics.median(one.figures[label]) < SLOW_START]
    others = [one for one in able if not one.ours]
    others.sort(key=lambda one: statistics.median(one.figures[label]), reverse=not lower_is_better(label))
    return [one for one in able if one.ours or one in others[:BEST]]


def measure(
    peers: list[Peer], labels: list[str], probe: Callable[[], float], deadline: float, seen: Callable[[Peer, str], None]
) -> None:
    """Rounds until the deadline (of `time.monotonic`); no figure is begun after it.

    Args:
        labels: workloads, START first: an engine that has not been started cannot work.
        probe: the read bandwidth now, in GB/s.
        seen: called after each figure.
    """
    rounds = 0
    while time.monotonic() < deadline and not all(one.failure for one in peers):
        for label in labels:
            for one in contenders(peers, label) if rounds else peers:
                if time.monotonic() < deadline and not one.failure:
                    _take(one, label, rounds, probe)
                    seen(one, label)
        rounds += 1


def _take(one: Peer, label: str, seed: int, probe: Callable[[], float]) -> None:
    """A figure and the bandwidth before it; an engine that fails is left out from then on."""
    bandwidth = probe()
    try:
        one.figures[label].append(one.figure(label, seed))
    except (RuntimeError, OSError) as error:
        one.failure = str(error)
        one.stop()
        return
    one.bandwidths[label].append(bandwidth)
