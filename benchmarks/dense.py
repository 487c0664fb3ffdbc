"""Dense Triton kernels on a GPU: checks them against float64 and times them in CUDA graphs, beside the library.

    python benchmarks/dense.py check            every kernel against the reference, at many row counts
    python benchmarks/dense.py tune [NAME:ROWS,ROWS ...]  time the ways to cut each product
    python benchmarks/dense.py chain            time whole layers without attention, 1 to 128 rows

Every product of a graph reads other weights, so that no cache holds them. Prints microseconds and terabytes of weights
a second; the last line of `chain` is JSON.
"""

import itertools
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.kernels.triton import launch
from quire.kernels.triton.dense import gemv, skinny
from quire.kernels.triton.dense.linear import triton_linear, triton_norm_gate_up, triton_norm_linear
from quire.kernels.triton.dense.norm import triton_add_rms_norm
from quire.layers.build import Build
from quire.layers.linear import Matrix, column, row
from quire.layers.mlp import GatedMLP
from quire.layers.norm import RMSNorm
from quire.layers.norm_linear import NormLinear
from quire.ops.activation import GateSpec
from quire.ops.block import NormGateSpec, NormLinearSpec
from quire.ops.linear import LinearSpec
from quire.ops.norm import NormSpec
from quire.ops.registry import load_providers
from quire.parallel.mesh import Mesh

BF16 = torch.bfloat16
Cut = gemv.Shape | skinny.Tiling


@dataclass(frozen=True)
class Product:
    """A product of a model's layer: `outputs` are of the result, after a gate."""

    name: str
    inputs: int
    outputs: int
    gate: str = ""
    norm: bool = False

    @property
    def weights(self) -> int:
        return self.outputs * (2 if self.gate else 1)


MODELS = {
    "0.6b": [
        Product("0.6b.qkv", 1024, 4096, norm=True),
        Product("0.6b.o", 2048, 1024),
        Product("0.6b.gate_up", 1024, 3072, "silu", True),
        Product("0.6b.down", 3072, 1024),
    ],
    "8b": [
        Product("8b.qkv", 4096, 6144, norm=True),
        Product("8b.o", 4096, 4096),
        Product("8b.gate_up", 4096, 14336, "silu", True),
        Product("8b.down", 14336, 4096),
    ],
}
WAYS = {
    "torch_native": ["torch_native"],
    "triton": ["triton", "torch_native"],
    "triton, no PDL": ["triton", "torch_native"],
}
LAYERS = {"0.6b": 28, "8b": 8}
"""Layers of a chain; of the larger model as many as are needed to keep caches out."""
HEADS = [Product("0.6b.head", 1024, 151936), Product("8b.head", 4096, 128256)]


def normal(*shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.float32).mul_(scale).to(BF16)


def graph_us(run: Callable[[], object], replays: int = 10) -> float:
    """Median time of one replay of a graph of `run`, in microseconds."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run()
    times = []
    for i in range(replays + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        if i >= 2:
            times.append(start.elapsed_time(end) * 1000)
    return sorted(times)[len(times) // 2]


def call(p: Product, x: Tensor, weight: Tensor, norm: Tensor, delta: Tensor, cut: Cut | None) -> Tensor:
    """One product the way it would run; with a cut of the streaming kernel, the norm in it."""
    if cut is None and len(x) == 1:
        cut = gemv.shape_of(p.inputs, p.outputs, bool(p.gate), x.device)
    if isinstance(cut, gemv.Shape):
        total = torch.empty_like(x)
        return gemv.product(x, weight, None, p.gate, gemv.Norm(delta, norm, total, 1e-6, 0.0) if p.norm else None, cut)
    return skinny.product(x, weight, None, p.gate, cut)


def library(p: Product, x: Tensor, weight: Tensor) -> Tensor:
    out = F.linear(x, weight)
    return F.silu(out[:, : p.outputs]).mul_(out[:, p.outputs :]) if p.gate else out


def cuts(p: Product, rows: int) -> Iterator[Cut]:
    """The ways worth timing: those that fit into registers and shared memory and keep most multiprocessors busy."""
    gates = 2 if p.gate else 1
    if rows == 1:
        ways = itertools.product((1, 2, 4, 8), (512, 1024, 2048), (1, 2, 3, 4), (2, 4, 8))
        for outputs, chunk, held, warps in ways:
            registers = outputs * held * chunk * gates / (64 * warps)
            blocks = p.outputs / outputs
            whole = held * chunk == p.inputs or (p.inputs > 3072 and held == 2)
            if 8 <= registers <= 64 and whole and 256 <= blocks <= 40_000 and outputs * chunk >= 256 * warps:
                yield gemv.Shape(outputs, chunk, held, warps)
        return
    if rows == 32:
        yield skinny.tiling(p.outputs, p.inputs, 64, bool(p.gate), torch.device("cuda"))
        return
    wide = 16 if rows <= 16 else 64 if rows <= 64 else 128
    for tall, warps, depth, parts in itertools.product((16, 32, 64, 128), (4, 8), (64, 128, 256), (1, 2, 3, 4, 6, 8)):
        share = p.inputs // parts
        steps = share // depth
        blocks = -(-p.outputs // tall) * parts
        if p.inputs % (parts * depth) or (tall < 64 and wide == 16) or (tall * gates >= 128) != (warps == 8):
            continue
        if not 48 <= blocks <= (270 if parts > 1 else 3000):
            continue
        for held, stages in ((0, 3), (0, 4), (0, 6), (1, 4), (2, 4), (3, 4), (4, 4)):
            pipelined = depth * 2 * (tall * gates + wide) * (stages if steps > held else 0)
            shared = pipelined + held * depth * 2 * (tall * gates + (wide if held == steps else 0))
            if shared > 220_000 or held > steps or (steps > held > 1) or (held == 0 and steps < stages):
                continue
            if shared < 48_000 and steps > held:
                continue
            yield skinny.Tiling(tall, wide, depth, parts, stages, warps, held)


def compiled(job: tuple[Product, int, Cut | None]) -> None:
    """Run a product once in a process of its own, which leaves the kernel in Triton's cache."""
    p, rows, cut = job
    x, weight = (torch.zeros(shape, device="cuda", dtype=BF16) for shape in ((rows, p.inputs), (p.weights, p.inputs)))
    try:
        call(p, x, weight, x[0], x, cut)
        torch.cuda.synchronize()
    except Exception as error:
        print("FAILED", job, type(error).__name__, str(error)[:200])


def wanted(arguments: list[str]) -> list[tuple[Product, tuple[int, ...]]]:
    """Products and row counts from arguments like `8b` and `0.6b.qkv:1,64`; everything without any."""
    found = []
    for argument in arguments or ["0.6b", "8b"]:
        name, _, rows = argument.partition(":")
        counts = tuple(int(n) for n in rows.split(",")) if rows else (1, 4, 16, 64, 128)
        products = [*MODELS["0.6b"], *MODELS["8b"], *HEADS]
        found += [
            (p, counts)
            for p in products
            if p.name == name or (p.name.split(".")[0:-1] == name.split(".") and p not in HEADS)
        ]
    return found


def library_run(p: Product, x: Tensor, weights: list[Tensor]) -> None:
    for weight in weights:
        library(p, x, weight)


def cut_run(p: Product, x: Tensor, weights: list[Tensor], norm: Tensor, delta: Tensor, cut: Cut | None) -> None:
    for weight in weights:
        call(p, x, weight, norm, delta, cut)


def tune(arguments: list[str]) -> None:
    jobs = [(p, rows, cut) for p, counts in wanted(arguments) for rows in counts for cut in [None, *cuts(p, rows)]]
    started = time.monotonic()
    with multiprocessing.get_context("fork").Pool(15) as pool:
        pool.map(compiled, jobs, chunksize=2)
    print(f"{len(jobs)} kernels compiled in {time.monotonic() - started:.1f} s", flush=True)
    for p, counts in wanted(arguments):
        size = p.weights * p.inputs * 2
        copies = max(4, -(-400_000_000 // size))
        weights = [normal(p.weights, p.inputs, scale=p.inputs**-0.5) for _ in range(copies)]
        for rows in counts:
            x, delta, norm = normal(rows, p.inputs), normal(rows, p.inputs), normal(p.inputs)
            times: dict[Cut | str, float] = {}
            times["library"] = graph_us(partial(library_run, p, x, weights)) / copies
            for cut in [None, *cuts(p, rows)]:
                try:
                    us = graph_us(partial(cut_run, p, x, weights, norm, delta, cut)) / copies
                    times[cut or "default"] = us
                except Exception as error:
                    print("FAILED", cut, str(error)[:100])
            print(
                f"{p.name} rows={rows} library {times['library']:.2f} us {size / times.pop('library') / 1e6:.2f} TB/s"
            )
            for cut, us in sorted(times.items(), key=lambda item: item[1]):
                if cut != "default" and us > sorted(times.values())[min(3, len(times) - 1)]:
                    continue
                print(f"    {us:.2f} us {size / us / 1e6:.2f} TB/s {cut}", flush=True)


class Layer:
    """One layer without attention, made of the layers that models are made of, by `providers`."""

    def __init__(self, model: str, providers: list[str]) -> None:
        qkv, o, gate_up, _down = MODELS[model]
        b = Build(Mesh(), BF16, torch.device("cuda"), providers)
        self.attended, hidden = o.inputs, qkv.inputs
        self.qkv = column(b, hidden, [Matrix("qkv", qkv.outputs)])
        self.o = row(b / "o", o.inputs, o.outputs)
        self.mlp = GatedMLP(b / "mlp", hidden, gate_up.outputs)
        norms = [RMSNorm(b / name, hidden, 1e-6) for name in ("first", "second")]
        self.joints = NormLinear(b, norms[0], self.qkv), NormLinear(b, norms[1], self.mlp.gate_up, self.mlp)
        for weight in [w for m in (self.qkv, self.o, self.mlp) for w in m.parameters()]:
            weight.data.copy_(normal(*weight.shape, scale=weight.shape[1] ** -0.5))
        for norm in norms:
            norm.weight.data.fill_(1.0)
        self.size = sum(p.weights * p.inputs * 2 for p in MODELS[model])

    def forward(self, residual: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        qkv, residual = self.joints[0].forward(residual, delta)
        delta = self.o.forward(qkv[:, : self.attended].contiguous())
        gated, residual = self.joints[1].forward(residual, delta)
        return residual, self.mlp.down.forward(gated)


@torch.inference_mode()
def chain(row_counts: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)) -> None:
    jobs = [(p, rows, None) for m in MODELS.values() for p in m for rows in (1, 16, 32, 64, 128)]
    with multiprocessing.get_context("fork").Pool(15) as pool:
        pool.map(compiled, jobs, chunksize=2)
    load_providers(["torch_native", "triton"])
    found = []
    for model, (way, providers) in itertools.product(MODELS, WAYS.items()):
        layers = [Layer(model, providers) for _ in range(LAYERS[model])]
        for rows in row_counts if way != "triton, no PDL" else (1, 8, 64):
            residual, delta = (normal(rows, MODELS[model][0].inputs) for _ in range(2))

            def run(
                layers: list[Layer] = layers, residual: Tensor = residual, delta: Tensor = delta, way: str = way
            ) -> None:
                plain = mock.patch.object(launch.Device, "options", {"PDL": False})
                with plain if "no" in way else nullcontext():
                    for layer in layers:
                        residual, delta = layer.forward(residual, delta)

            us = graph_us(run) / len(layers)
            speed = layers[0].size / us / 1e6
            print(f"{model} rows={rows} {way}: {us:.2f} us a layer, {speed:.2f} TB/s", flush=True)
            found.append({"model": model, "rows": rows, "kernels": way, "us_per_layer": round(us, 2)})
        del layers
    print(json.dumps(found))


def poisoned(count: int = 1 << 22) -> None:
    """Leave NaN in memory that the next allocations get."""
    blocks = [torch.full((count >> i,), float("nan"), device="cuda", dtype=BF16) for i in range(0, 22, 2)]
    torch.cuda.synchronize()
    del blocks


CHECKED = [
    Product("a", 1024, 4096, norm=True),
    Product("b", 2048, 1024),
    Product("c", 3072, 1024),
    Product("d", 1024, 3072, "silu", True),
    Product("e", 200, 72, "gelu_tanh", True),
    Product("f", 14336, 512),
    Product("g", 1000, 136, norm=True),
]


def checked(job: tuple[Product, int]) -> float:
    """The relative error of one product by its kernel, run twice over poisoned memory; infinite if the runs differ."""
    p, rows = job
    torch.manual_seed(rows)
    weight, bias = normal(p.weights, p.inputs, scale=p.inputs**-0.5), normal(p.weights)
    residual, delta, scale = normal(rows, p.inputs), normal(rows, p.inputs), 1 + normal(p.inputs, scale=0.1)
    norm = NormSpec(p.inputs, 1e-6, 0.0, "bfloat16", "cuda")
    spec = LinearSpec(p.inputs, p.weights, True, "bfloat16", "cuda")
    gate = GateSpec(p.outputs, p.gate or "silu", "bfloat16", "cuda")

    def run() -> tuple[Tensor, Tensor]:
        poisoned()
        if p.gate:
            return triton_norm_gate_up(residual, delta, scale, weight, bias, NormGateSpec(norm, spec, gate))
        if p.norm and rows == 1:
            return triton_norm_linear(residual, delta, scale, weight, bias, NormLinearSpec(norm, spec))
        normed, total = triton_add_rms_norm(residual, delta, scale, norm) if p.norm else (residual, residual)
        return triton_linear(normed, weight, bias, spec), total

    total = residual + delta if p.norm else residual
    x = total.double()
    if p.norm:
        x *= torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * scale.double()
    exact = x @ weight.double().T + bias.double()
    if p.gate:
        gated, up = exact[:, : p.outputs], exact[:, p.outputs :]
        exact = (F.silu(gated) if p.gate == "silu" else F.gelu(gated, approximate="tanh")) * up
    (out, summed), (again, _) = run(), run()
    same = torch.equal(out, again) and torch.equal(summed, total)
    clean = not skinny.counters_of(out.device).any()
    return float((out.double() - exact).norm() / exact.norm()) if same and clean else float("inf")


def check() -> None:
    jobs = list(itertools.product(CHECKED, (1, 2, 3, 4, 5, 16, 17, 33, 64, 65, 128)))
    with multiprocessing.get_context("fork").Pool(15) as pool:
        errors = dict(zip(jobs, pool.map(checked, jobs, chunksize=1), strict=True))
    for (p, rows), error in errors.items():
        if not error < 8e-3:
            print("WRONG", p, rows, error)
    print(f"{len(jobs)} products, largest relative error {max(errors.values()):.5f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["tune"]:
        tune(sys.argv[2:])
    elif sys.argv[1:2] == ["chain"]:
        chain()
    else:
        check()
