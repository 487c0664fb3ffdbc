"""The CPU table: each engine's median, how far it is from the machine's limit, and our ratio to the best peer's.

Figures are recorded in benchmarks/ledger/cpu-peers.jsonl.
"""

import os
import statistics

from lib import ledger, shapes
from lib.cpu_workloads import WORKLOADS, Cost, Machine, limit, lower_is_better
from lib.turns import LABELS, START, Peer
from quire.platforms.host import look

LEDGER = ledger.LEDGER / "cpu-peers.jsonl"
MODEL = "qwen3-0.6b"
BYTES = {"16": 2.0, "8": 1.0, "4": 0.5}
"""Of a weight, by its bits; scales and a head of 8 bits are left out: the limit is one that nobody reaches."""

WANTED: dict[str, dict[str, tuple[float, float]]] = {
    "16": {"A": (35 / 33, 44 / 33), "B": (385 / 380, 405 / 380), "C1": (112 / 95, 128 / 95), "C2": (70 / 55, 82 / 55)}
    | {"D": (8.6 / 6.5, 8.6 / 5.7)},
    "8": {"A": (60 / 37, 85 / 37), "B": (500 / 438, 640 / 438), "C1": (175 / 114, 220 / 114)}
    | {"C2": (100 / 64, 140 / 64), "D": (16.7 / 5, 16.7 / 3.8)},
    "4": {"A": (85 / 58, 130 / 58), "B": (500 / 443, 600 / 443)},
}
"""Our least ratio to the best peer, and the one aimed at, by bits and workload."""


def metric(label: str) -> str:
    """What is measured."""
    return "seconds to the first token" if label == START else WORKLOADS[label](0).metric


def say(one: Peer, label: str) -> None:
    """Print the figure that has just been taken."""
    if one.failure:
        print(one.failure, flush=True)
    else:
        bandwidth = one.bandwidths[label][-1]
        print(
            f"{label:<3}{one.name:<18}{one.figures[label][-1]:9.2f} {metric(label)} at {bandwidth:.1f} GB/s", flush=True
        )


def show(peers: list[Peer], bits: str, operations: float) -> None:
    """Print medians, the share of the machine's limit, and ratios.

    Args:
        operations: products of bfloat16 that the machine adds up in a second, in units of 10**12.
    """
    for label in LABELS:
        medians = {one.name: statistics.median(one.figures[label]) for one in peers if one.figures[label]}
        if not medians:
            continue
        print(f"\n{label}, {bits} bits: {metric(label)}")
        theirs = [value for name, value in medians.items() if not name.startswith("quire")]
        for one in peers:
            if one.name not in medians:
                continue
            value, bandwidth = medians[one.name], statistics.median(one.bandwidths[label])
            line = f"  {one.name:<18}{value:9.2f}   at {bandwidth:4.1f} GB/s, {len(one.figures[label])} runs"
            if label != START:
                line += _of_limit(label, bits, value, Machine(bandwidth * 1e9, operations * 1e12))
            if theirs and one.ours:
                line += _against(label, bits, value, min(theirs) if lower_is_better(label) else max(theirs))
            print(line, flush=True)


def _of_limit(label: str, bits: str, value: float, machine: Machine) -> str:
    # Bytes are multiplied twice as fast as values of bfloat16.
    rate = machine.operations * (1 if bits == "16" else 2)
    best = limit(WORKLOADS[label](0), _cost(bits), Machine(machine.bandwidth, rate))
    share = best / value if lower_is_better(label) else value / best
    return f", {100 * share:3.0f} % of the limit {best:.1f}"


def _against(label: str, bits: str, value: float, theirs: float) -> str:
    ratio = theirs / value if lower_is_better(label) else value / theirs
    said = f", {ratio:.2f} times the best peer"
    if label not in WANTED[bits]:
        return said
    least, aim = WANTED[bits][label]
    return f"{said} ({least:.2f} due, {aim:.2f} aimed at): {'holds' if ratio >= least else 'MISSED'}"


def _cost(bits: str) -> Cost:
    """What the model costs."""
    counts = shapes.count(shapes.MODELS[MODEL])
    body = counts.layers * (counts.attention + counts.mlp)
    state, pair = 2.0 * counts.layers * counts.state_width, 4.0 * counts.layers * counts.query_width
    return Cost(BYTES[bits] * (body + counts.head), body, counts.head, state, pair)


def record(peers: list[Peer]) -> None:
    """Append a line per figure to the ledger."""
    host = look()
    for one in peers:
        for label, values in one.figures.items():
            if not values:
                continue
            line = {
                "commit": ledger.commit(),
                "machine": f"{host.cpu}, {os.cpu_count()} threads, {host.memory_bytes / 2**30:.0f} GiB",
                "engine": one.name,
                "model": f"{MODEL}, random weights",
                "workload": label,
                "metric": metric(label),
                "value": round(statistics.median(values), 2),
                "all": [round(value, 2) for value in values],
                "bandwidth_gb_s": [round(value, 1) for value in one.bandwidths[label]],
                "runs": len(values),
                "command": ledger.command(),
            }
            ledger.append(LEDGER, line)
