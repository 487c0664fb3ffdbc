"""What it costs to look at every row of logits whether it is finite: an engine's greedy draw, and the same without.

    python benchmarks/finite.py [--device cpu|cuda] [--rows 64] [--vocab 151936] [--step-ms MS] [--ledger FILE]

No pass over the logits is made for it: the maximum tells, and it is the greedy token anyway. On a GPU the draw is
measured as an engine plays it, recorded, in turn with the same kernels without the check. On a CPU there is no such
kernel beside the engine's own: what the whole draw takes, which is more than its check, is all that is told.
`--step-ms` is the decode step of a model with such a vocabulary, measured elsewhere, of which shares are given.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from lib import ledger
from lib.recorded import microseconds
from torch import Tensor

from quire.ops.greedy import greedy_sample
from quire.ops.registry import load_providers

TURNS, CALLS = 11, 50
Draw = Callable[[Tensor], Tensor]


def on_gpu(draw: Draw, logits: Tensor) -> dict[str, float]:
    """Microseconds of a recorded draw, and of its check: medians of turns."""
    from lib.greedy_kernel import unchecked

    assert draw(logits)[0].equal(unchecked(logits))
    pairs = [[microseconds([partial(f, logits)] * CALLS) for f in (draw, unchecked)] for _ in range(TURNS)]
    return {
        "draw_us": statistics.median(checked for checked, _ in pairs),
        "check_us": statistics.median(checked - plain for checked, plain in pairs),
    }


def on_cpu(draw: Draw, logits: Tensor) -> dict[str, float]:
    """Microseconds of a draw: the median of turns."""
    taken = []
    for _ in range(TURNS):
        began = time.perf_counter()
        for _ in range(CALLS):
            draw(logits)
        taken.append(1e6 * (time.perf_counter() - began) / CALLS)
    return {"draw_us": statistics.median(taken)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--step-ms", type=float)
    parser.add_argument("--ledger", type=Path)
    given = parser.parse_args()
    provider = "triton" if given.device == "cuda" else "cpu"
    load_providers([provider])
    draw = greedy_sample.providers[provider].function
    logits = torch.randn(given.rows, given.vocab, dtype=torch.bfloat16, device=given.device)
    spoiled = logits.clone()
    spoiled[-1, 7] = torch.nan
    assert draw(spoiled).equal(greedy_sample(spoiled)) and draw(spoiled)[1, -1] == 1
    figures = on_gpu(draw, logits) if given.device == "cuda" else on_cpu(draw, logits)
    if given.step_ms:
        figures |= {f"{name}_share_of_step": value / 1000 / given.step_ms for name, value in figures.items()}
    for name, value in figures.items():
        print(f"{name:28} {value:.4g}")
    if given.ledger:
        device = torch.cuda.get_device_name() if given.device == "cuda" else ledger.machine()
        line = {"commit": ledger.commit(), "machine": device, "command": ledger.command()}
        ledger.append(given.ledger, {**line, "benchmark": "finite", **figures})


if __name__ == "__main__":
    main()
