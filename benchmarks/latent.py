"""Attention to latents, and that of encoders, on a GPU: held against float32, then timed in graphs.

    python benchmarks/latent.py                      the shipped shapes
    python benchmarks/latent.py --sweep              other shapes, too
    python benchmarks/latent.py --compile-ahead 12   compiles everything in so many processes first

Latents of 512 values and rotated keys of 64, as DeepSeek's; 16 heads are DeepSeek-V2-Lite's, or an eighth of V3's 128.
TB/s counts the bytes of what is kept of all tokens, once. One JSON line a figure.
"""

import argparse
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace

import torch
from attention import a_step
from lib import ceilings
from lib.recorded import microseconds
from lib.shares import add_flags, compile_ahead
from torch import Tensor

from quire.kernels.triton.attention import latent
from quire.ops.attention import KVPages
from quire.ops.latent import LatentSpec, latent_attention
from quire.ops.ragged import RaggedSpec, ragged_attention
from quire.ops.registry import load_providers

RANK, TURNED, PLAIN, VALUE, PAGE = 512, 64, 128, 128, 64
CASES = [(16, 1, 32768), (16, 16, 4096), (16, 64, 4096), (16, 256, 1024), (128, 1, 4096), (128, 64, 4096)]
"""Heads, sequences, tokens of each."""
BEYOND_CACHES = 512 << 20
SWEPT = [
    latent.Shape(*values)
    for values in (
        (16, 32, 2, 4, 2),
        (16, 32, 3, 4, 3),
        (16, 64, 2, 4, 1),
        (16, 64, 3, 8, 1),
        (16, 16, 4, 4, 4),
        (64, 32, 2, 8, 1),
        (64, 32, 3, 8, 1),
        (64, 64, 2, 8, 1),
    )
]
TEXTS = ([32] * 64, [128] * 32, [512] * 16, [8192], [1 + 37 * i % 500 for i in range(64)])


class Latents:
    """Layers of one step, as many as caches do not hold."""

    def __init__(self, heads: int, rows: int, tokens: int) -> None:
        self.spec = LatentSpec(
            heads, RANK, PLAIN, TURNED, VALUE, 192**-0.5, 1e-6, False, "bfloat16", "cuda", step="decode"
        )
        step, pages = a_step([1] * rows, [tokens] * rows, PAGE)
        self.bytes, self.step = rows * tokens * (RANK + TURNED) * 2, step
        self.said = {"heads": heads, "sequences": rows, "tokens": tokens}

        def pool(size: int) -> Tensor:
            return torch.randn(pages, PAGE, 1, size, device="cuda", dtype=torch.bfloat16)

        self.layers = [KVPages(pool(RANK), pool(TURNED)) for _ in range(max(1, BEYOND_CACHES // self.bytes))]
        self.q = torch.randn(rows, heads, PLAIN + TURNED, device="cuda", dtype=torch.bfloat16)
        self.up = torch.randn(heads, PLAIN + VALUE, RANK, device="cuda", dtype=torch.bfloat16) * RANK**-0.5

    def error(self) -> float:
        """Of the first rows, against the reference on the same values."""
        few = min(2, len(self.q))
        step, pages = self.step, self.layers[0]
        some = replace(
            step,
            positions=step.positions[:few],
            query_start=step.query_start[: few + 1],
            seq_lens=step.seq_lens[:few],
            groups=(replace(step.groups[0], page_table=step.groups[0].page_table[:few]),),
            derived={},
        )
        wide = KVPages(pages.k.float(), pages.v.float())
        want = latent_attention(self.q[:few].float(), self.up.float(), wide, some, replace(self.spec, dtype="float32"))
        got = self.run(pages)[:few].float()
        return float((got - want).norm() / want.norm())

    def run(self, pages: KVPages) -> Tensor:
        """One layer."""
        out: Tensor = latent_attention.providers["triton"].function(self.q, self.up, pages, self.step, self.spec)
        return out

    def time(self) -> dict[str, object]:
        """Microseconds of a layer, its products with `up` included."""
        time = microseconds([lambda pages=pages: self.run(pages) for pages in self.layers])
        return {**self.said, "us": round(time, 1), "TB/s": round(self.bytes / time / 1e6, 2)}


def texts(lengths: list[int], compiles: bool) -> Iterator[dict[str, object]]:
    """Encoders' attention: 12 heads of 64 values, both providers."""
    spec = RaggedSpec(12, 64, 0.125, None, "bfloat16", "cuda")
    step, _ = a_step(lengths, lengths, PAGE)
    q, k, v = (torch.randn(sum(lengths), 12, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    want = ragged_attention.providers["torch_native"].function(q.float(), k.float(), v.float(), step, spec)
    for name in ("triton", "torch_native"):
        call = ragged_attention.providers[name].function
        got = call(q, k, v, step, spec)
        error = float((got.float() - want).norm() / want.norm())
        if compiles:
            continue
        # What is derived from the step alone is there from the second layer on.
        time = ceilings.seconds(call, q, k, v, step, spec) * 1e6
        flops = 4 * 12 * 64 * sum(n * n for n in lengths)
        said = {"texts": len(lengths), "tokens": sum(lengths), "provider": name, "us": round(time, 1)}
        yield {**said, "TFLOP/s": round(flops / time / 1e6, 1), "error": round(error, 5)}


def measure(sweep: bool, share: tuple[int, int]) -> None:
    """Check and time; with a share, compile that share of everything only."""
    count = itertools.count()

    def mine() -> bool:
        return share[1] == 0 or next(count) % share[1] == share[0]

    shipped = latent.shape_of
    for heads, rows, tokens in CASES:
        case = Latents(heads, rows, tokens)
        for shape in [shipped(heads, 2), *(SWEPT if sweep else [])]:
            if not mine():
                continue
            latent.shape_of = lambda heads, itemsize, shape=shape: shape
            said = {"shape": [shape.block, shape.tile, shape.stages, shape.warps, shape.resident]}
            try:
                said["error"] = round(case.error(), 5)
                if share[1] == 0:
                    print(json.dumps({**said, **case.time()}), flush=True)
            except Exception as failure:
                print(json.dumps({**said, **case.said, "FAILED": repr(failure)[:160]}), flush=True)
        del case
    latent.shape_of = shipped
    for lengths in TEXTS:
        if mine():
            for line in texts(lengths, share[1] > 0):
                print(json.dumps(line), flush=True)


def main() -> None:
    """Parse, compile ahead if asked, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweep", action="store_true", help="time other shapes too")
    add_flags(parser)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/latent.py needs a GPU")
        return
    share = (args.share - 1, args.compile_ahead) if args.share else (0, 0)
    compile_ahead(args)
    load_providers(["torch_native", "triton"])
    torch.manual_seed(0)
    if share[1] == 0:
        found = ceilings.measure(torch.device("cuda"))
        print(json.dumps({"memory TB/s": found.read / 1e12, "matrix TFLOP/s": found.matrix / 1e12}), flush=True)
    measure(args.sweep, share)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
