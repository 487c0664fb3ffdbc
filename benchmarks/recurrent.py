"""Layers with recurrent state on a GPU: held against float32, then timed, with the bytes or operations that they need.

    python benchmarks/recurrent.py                      the shipped tiles
    python benchmarks/recurrent.py --sweep              other tiles of the kernels over chunks, too
    python benchmarks/recurrent.py --compile-ahead 8    compiles everything in so many processes first

Shapes: Qwen3-Next-80B-A3B (delta), Granite-4.0-H-Small (scan). Every figure is the median over replays of
a graph. TB/s counts what must be moved: inputs, results, and every state read and written; with one token a sequence
that is nearly all states. TFLOP/s counts the products of the algorithm by chunks of 64 tokens. One JSON line a figure.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

import torch
from lib.recorded import microseconds
from lib.shares import add_flags, compile_ahead
from torch import Tensor

from quire.kernels.triton.recurrent import delta_chunks, scan
from quire.ops.delta import DeltaSpec, DeltaWeights
from quire.ops.recurrent import ConvSpec, StatePages, state_step
from quire.ops.registry import OPS, load_providers
from quire.ops.ssd import ScanSpec, ScanWeights
from quire.ops.step import GroupInputs, StepInputs

DELTA = DeltaSpec(16, 32, 128, 128, "bfloat16", "cuda")
SCAN = ScanSpec(128, 1, 64, 128, dtype="bfloat16", device="cuda")
CONV = ConvSpec(8192, 4, False, "bfloat16", "cuda")
CHUNK, PAGE = 64, 16
ROWS = (1, 16, 64, 256)
PROMPTS = ([2048], [8192], [2048] * 4, [512] * 16)
CLOSE = 0.02
"""Relative error, in the norm, that rounding to bfloat16 explains."""


@dataclass
class Share:
    """Which of the calls this process only compiles; of 0 processes: it times all of them."""

    index: int = 0
    of: int = 0
    count: int = 0

    def skips(self) -> bool:
        self.count += 1
        return self.of > 0 and self.count % self.of != self.index


SHARE = Share()


def normal(*shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16) * scale


def step_for(counts: list[int]) -> tuple[StepInputs, int]:
    """A step of sequences that begin, or of one token of sequences that have some: the step, and how many pages."""
    decodes = max(counts) == 1
    step, pages = state_step(counts, [20] * len(counts) if decodes else counts, PAGE)
    group = step.groups[0]
    groups = (GroupInputs(group.page_table.cuda(), group.slots.cuda(), PAGE),)
    moved = {name: getattr(step, name).cuda() for name in ("token_ids", "positions", "query_start", "seq_lens")}
    return replace(step, groups=groups, derived={}, **moved), pages


class Case:
    """An op with inputs, what it should give, and what it must read and compute."""

    def __init__(self, name: str, counts: list[int]) -> None:
        self.name, self.counts = name, counts
        self.step, pages = step_for(counts)
        tokens, chunks = sum(counts), sum(-(-n // CHUNK) for n in counts)
        if name == "gated_delta_rule":
            self.spec: Any = DELTA
            heads, k, v = DELTA.value_heads, DELTA.key_dim, DELTA.value_dim
            weights = DeltaWeights(torch.rand(heads, device="cuda"), torch.rand(heads, device="cuda"))
            self.inputs: tuple[Any, ...] = normal(tokens, sum(DELTA.widths)), normal(tokens, 2 * heads), weights
            shape, self.flops = (heads, k, v), 2 * chunks * heads * (2 * CHUNK**2 * (k + v) + 3 * CHUNK * k * v)
        else:
            self.spec = SCAN
            heads, p, n = SCAN.heads, SCAN.head_dim, SCAN.state
            scales = (torch.rand(heads, device="cuda") for _ in range(3))
            self.inputs = normal(tokens, sum(SCAN.widths), scale=0.3), normal(tokens, heads), ScanWeights(*scales)
            shape, self.flops = (heads, p, n), 2 * chunks * heads * (CHUNK**2 * (n + p) + 2 * CHUNK * p * n)
        self.pages = StatePages(torch.zeros(1, 1, 1, device="cuda"), torch.randn(pages, *shape, device="cuda"), 0)
        inputs = sum(x.numel() for x in self.inputs[:2])
        self.bytes = 2 * (inputs + tokens * heads * shape[-1 if name == "gated_delta_rule" else 1])
        self.bytes += 2 * 4 * len(counts) * shape[0] * shape[1] * shape[2]

    @cached_property
    def want(self) -> Tensor:
        """By torch in float32; not made by processes that only compile, for it takes gigabytes."""
        return self.call("torch_native", *(x.float() for x in self.inputs[:2]), self.inputs[2])

    def call(self, provider: str, *inputs: Any) -> Tensor:
        """On pages of its own, so that every call begins with the same states."""
        pages = replace(self.pages, state=self.pages.state.clone())
        step = replace(self.step, derived={})
        out: Tensor = OPS[self.name].providers[provider].function(*inputs, pages, step, self.spec)
        return out

    def time(self, what: str) -> None:
        """Check and time what is set now."""
        if SHARE.skips():
            return
        said: dict[str, object] = {"what": what, "op": self.name, "sequences": len(self.counts)}
        said["tokens"] = sum(self.counts)
        try:
            got = self.call("triton", *self.inputs).float()
            if SHARE.of:
                return
            error = float((got - self.want).norm() / self.want.norm())
            run = OPS[self.name].providers["triton"].function
            step = replace(self.step, derived={})
            time = microseconds([lambda: run(*self.inputs, self.pages, step, self.spec)])
        except Exception as failure:
            print(json.dumps({**said, "FAILED": str(failure)[:200]}), flush=True)
            return
        said |= {"us": round(time, 1), "error": round(error, 5)} | ({} if error < CLOSE else {"WRONG": True})
        said |= {"TB/s": round(self.bytes / time / 1e6, 2), "TFLOP/s": round(self.flops / time / 1e6, 1)}
        print(json.dumps(said), flush=True)


def time_conv(counts: list[int]) -> None:
    """The convolution, whose inputs are columns of a wider product."""
    if SHARE.skips():
        return
    step, pages = step_for(counts)
    x, weight = normal(sum(counts), 12352)[:, : CONV.channels], normal(CONV.channels, CONV.width)
    kept = StatePages(normal(pages, CONV.width - 1, CONV.channels), torch.zeros(1, device="cuda"), 0)
    call = OPS["causal_conv1d"].providers["triton"].function
    call(x, weight, None, kept, step, CONV)
    if SHARE.of:
        return
    time = microseconds([lambda: call(x, weight, None, kept, step, CONV)])
    moved = 2 * 2 * CONV.channels * (sum(counts) + (CONV.width - 1) * len(counts))
    said = {"op": "causal_conv1d", "sequences": len(counts), "tokens": sum(counts), "us": round(time, 1)}
    print(json.dumps({**said, "TB/s": round(moved / time / 1e6, 2)}), flush=True)


def variants(op: str) -> Iterator[str]:
    """Sets other tiles, one kernel's at a time, and says which; the shipped ones come back at the end."""
    module: Any = delta_chunks if op == "gated_delta_rule" else scan
    shipped = module.TILES
    tiles = product((32, 64), (4, 8), (2, 3))
    changes = [{"walk": n, "walk_warps": w, "walk_stages": d} for n, w, d in tiles]
    if op == "gated_delta_rule":
        changes += [{"solve_warps": w} for w in (2, 8)]
    for change in changes:
        module.TILES = replace(shipped, **change)
        yield " ".join(f"{name} {value}" for name, value in change.items())
    module.TILES = shipped


def measure(sweep: bool) -> None:
    for name in ("gated_delta_rule", "ssd_scan"):
        for rows in ROWS:
            Case(name, [1] * rows).time("shipped")
        for counts in PROMPTS:
            case = Case(name, counts)
            case.time("shipped")
            if sweep and counts == [8192]:
                for what in variants(name):
                    case.time(what)
    for counts in ([1] * 64, [8192]):
        time_conv(counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweep", action="store_true", help="time other tiles too")
    add_flags(parser)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/recurrent.py needs a GPU")
        return
    if args.share:
        SHARE.index, SHARE.of = args.share - 1, args.compile_ahead
    compile_ahead(args)
    load_providers(["torch_native", "triton"])
    torch.manual_seed(0)
    measure(args.sweep)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
