"""What it costs to look at every row of logits whether it is finite: the greedy draw with the check and without.

    python benchmarks/finite.py [--device cpu|cuda] [--rows 64] [--vocab 151936] [--step-ms MS] [--ledger FILE]

No pass over the logits is made for it: a maximum tells of NaN and infinity, and that maximum is the greedy token. What
is left is measured: a few operations on one value per row. `--step-ms` is the decode step of a model with such a
vocabulary, measured elsewhere; the cost is then given as a share of it.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from lib import ledger
from torch import Tensor

from quire.ops.greedy import greedy_sample


def unchecked(logits: Tensor) -> Tensor:
    """The greedy tokens, whatever they mean; in the form of `greedy_sample`."""
    tokens = logits.max(-1).indices
    return torch.stack([tokens, torch.zeros_like(tokens)])


def seconds(draw: Callable[[Tensor], Tensor], logits: Tensor, times: int) -> float:
    """Of one draw, on average."""
    draw(logits)
    if logits.is_cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        draw(logits)
    if logits.is_cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--step-ms", type=float)
    parser.add_argument("--ledger", type=Path)
    given = parser.parse_args()
    logits = torch.randn(given.rows, given.vocab, device=given.device)
    assert greedy_sample(logits)[0].equal(unchecked(logits)[0])
    pairs = [(seconds(greedy_sample, logits, 10), seconds(unchecked, logits, 10)) for _ in range(21)]
    cost_us = statistics.median(1e6 * (checked - plain) for checked, plain in pairs)
    draw_us = statistics.median(1e6 * plain for _, plain in pairs)
    figures = {"draw_us": draw_us, "check_us": cost_us, "share_of_draw": cost_us / draw_us}
    if given.step_ms:
        figures["share_of_step"] = cost_us / 1000 / given.step_ms
    for name, value in figures.items():
        print(f"{name:20} {value:.4g}")
    if given.ledger:
        line = {"commit": ledger.commit(), "machine": ledger.machine(), "command": ledger.command()}
        ledger.append(given.ledger, {**line, "benchmark": "finite", **figures})


if __name__ == "__main__":
    main()
