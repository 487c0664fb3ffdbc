"""Triton kernels for weights of 4 and 8 bits on a GPU: checks them against float64 and times them in CUDA graphs.

    python benchmarks/quantized.py check        every type against the values that the reference makes of the weights
    python benchmarks/quantized.py tune [ROWS]  the ways to cut products of the 8B shape; keeps the best of one row
    python benchmarks/quantized.py many         hundreds to thousands of rows, beside the library on bfloat16

Every product of a graph reads other weights, so that no cache holds them. Prints microseconds and terabytes of weights
a second.
"""

import itertools
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from dense import BF16, HEADS, MODELS, Product, graph_us, normal
from torch import Tensor

from quire.kernels.triton import tuned
from quire.kernels.triton.dense.quantized import gemv, narrowed, skinny, unpacked
from quire.kernels.triton.dense.quantized.weight import Weight, arranged
from quire.kernels.triton.dense.skinny import counters_of
from quire.quantization.scaled import SCALE_BYTES, Form, Scaled

FORMS = {
    "fp8": Form("fp8_e4m3", None),
    "fp8 blocks": Form("fp8_e4m3", 128, row_block=128),
    "e5m2": Form("fp8_e5m2", None),
    "mxfp8": Form("fp8_e4m3", 32, "e8m0"),
    "int8": Form("int8", None),
    "int8 groups": Form("uint8b128", 128, "float16"),
    "int8 zeros": Form("uint8", None, zeros=True),
    "int4": Form("uint4b8", 128),
    "int4 zeros": Form("uint4", 128, "float16", zeros=True),
    "int4 32": Form("uint4b8", 32, "bfloat16"),
    "int4 rows": Form("int4", None),
    "nvfp4": Form("fp4_e2m1", 16, "float8_e4m3fn", factor="multiply"),
    "mxfp4": Form("fp4_e2m1", 32, "e8m0"),
}
TUNED = ("fp8", "int4 zeros", "nvfp4")


def weight_of(form: Form, outputs: int, inputs: int) -> Weight:
    """Random codes, scales of about 1 / sqrt(inputs)."""
    storage = arranged(Scaled.of(outputs, inputs, form, "bfloat16", "cuda"))
    assert isinstance(storage, Scaled), form
    data = storage.allocate()
    codes = storage.part(data, "codes")
    codes.random_(0, 256)
    if form.element.startswith("fp8"):
        # No NaN, no infinity.
        codes &= 0xBF
    scales = storage.part(data, "scales")
    if form.scale == "e8m0":
        scales.random_(116, 120)
    elif SCALE_BYTES[form.scale] == 1:
        scales.view(torch.uint8).random_(0x20, 0x40)
    else:
        scales.uniform_(0.5, 1.5).div_(inputs**0.5)
    if form.zeros:
        storage.part(data, "zeros").random_(0, 1 << form.bits)
    if form.factor:
        storage.part(data, "factors").uniform_(0.01, 0.02)
    return Weight(storage, data)


def values(weight: Weight) -> Tensor:
    return weight.storage.rows(weight.data, torch.arange(weight.outputs, device="cuda"))


def checked(job: tuple[str, int, str, bool]) -> tuple[float, float]:
    """The relative error of one product, infinite if runs differ; and the largest that it may have."""
    name, rows, gate, turn = job
    torch.manual_seed(rows)
    weight = weight_of(FORMS[name], 272, 896)
    x, bias = normal(rows, 896), normal(272)
    exact = x.double() @ values(weight).double().T + bias.double()
    if gate:
        first, second = exact.chunk(2, 1)
        exact = F.silu(first) * second
    may = 6e-3
    if rows == 1 and turn:
        run = partial(gemv.product, x, weight, bias, gate)
    elif rows <= 128:
        run = partial(skinny.product, x, weight, bias, gate)
    elif narrowed.takes(weight, rows):
        run, may = partial(narrowed.product, x, weight, bias), 4e-2
    else:
        run = partial(unpacked.product, x, weight, bias)
        tile = unpacked.values(weight, 0, weight.outputs, BF16)
        if not torch.equal(tile, values(weight)):
            return float("inf"), may
    out = run()
    same = all(torch.equal(run(), out) for _ in range(3)) and not counters_of(out.device).any()
    return (float((out.double() - exact).norm() / exact.norm()) if same else float("inf")), may


def check() -> None:
    jobs = [(name, rows, "", False) for name in FORMS for rows in (5, 33, 128, 300)]
    jobs += [(name, 1, gate, True) for name in FORMS for gate in ("", "silu")]
    jobs += [(name, 64, "silu", False) for name in TUNED]
    with multiprocessing.get_context("fork").Pool(15) as pool:
        errors = dict(zip(jobs, pool.map(attempted, jobs, chunksize=1), strict=True))
    for job, (error, may) in errors.items():
        if not error < may:
            print("WRONG", job, error)
    print(f"{len(jobs)} products, largest relative error {max(error for error, _ in errors.values()):.5f}", flush=True)


def attempted(job: tuple[str, int, str, bool]) -> tuple[float, float]:
    try:
        return checked(job)
    except Exception as error:
        print("FAILED", job, type(error).__name__, str(error)[-300:])
        return float("inf"), 0.0


Cut = gemv.Shape | skinny.Tiling | None


def cuts(p: Product, rows: int) -> Iterator[Cut]:
    """The ways worth timing."""
    yield None
    if rows == 1:
        for o, units, ahead in itertools.product((1, 2, 4, 8, 16), (32, 64, 128, 256), (1, 2, 4)):
            fetches = o * ahead * (2 if p.gate else 1)
            if 4 <= fetches <= 32 and 8 * units * ahead <= p.inputs and 700 <= p.outputs / o * units / 32 <= 40_000:
                yield gemv.Shape(o, units, ahead)
        return
    wide = max(16, 1 << (rows - 1).bit_length())
    for tall, parts, stages, warps in itertools.product((64, 128), (1, 2, 4), (4, 8), (4, 8)):
        blocks = -(-p.outputs // tall) * parts
        if not 120 <= blocks <= (1200 if parts > 1 else 3000) or (tall == 64 and warps == 8):
            continue
        if tall == 128 and warps == 8 and wide == 16:
            continue
        yield skinny.Tiling(tall, wide, 64, parts, stages, warps)


def compiled(job: tuple[str, Product, int, Cut]) -> None:
    """Run a product once in a process of its own, which leaves the kernel in Triton's cache."""
    name, p, rows, cut = job
    storage = arranged(Scaled.of(p.weights, p.inputs, FORMS[name], "bfloat16", "cuda"))
    assert isinstance(storage, Scaled)
    weight = Weight(storage, storage.allocate())
    try:
        product(p, torch.zeros((rows, p.inputs), device="cuda", dtype=BF16), cut, weight)
        torch.cuda.synchronize()
    except Exception as error:
        print("FAILED", job, type(error).__name__, str(error)[-200:])


def product(p: Product, x: Tensor, cut: Cut, weight: Weight) -> Tensor:
    if isinstance(cut, gemv.Shape) or (cut is None and len(x) == 1):
        return gemv.product(x, weight, None, p.gate, cut)
    return skinny.product(x, weight, None, p.gate, cut)


def whole(kernel: ModuleType, x: Tensor, weight: Weight) -> Tensor:
    made: Tensor = kernel.product(x, weight, None)
    return made


def repeated(weights: list[Weight], run: Callable[[Weight], object]) -> None:
    for weight in weights:
        run(weight)


def timed(weights: list[Weight], run: Callable[[Weight], object]) -> float:
    """Microseconds of a product; infinite where it fails."""
    try:
        return graph_us(partial(repeated, weights, run), 6) / len(weights)
    except Exception as error:
        print("FAILED", type(error).__name__, str(error)[-200:])
        return float("inf")


def tune(counts: tuple[int, ...] = (1, 16, 64), limit_s: float = 200.0) -> None:
    products = [*MODELS["8b"], HEADS[1]]
    jobs = [(name, p, rows, cut) for name in TUNED for p in products for rows in counts for cut in cuts(p, rows)]
    started = time.monotonic()
    with multiprocessing.get_context("fork").Pool(15) as pool:
        pool.map(compiled, jobs, chunksize=2)
    print(f"{len(jobs)} kernels compiled in {time.monotonic() - started:.1f} s", flush=True)
    for name, p in itertools.product(TUNED, products):
        size = weight_of(FORMS[name], p.weights, p.inputs).storage.nbytes
        weights = [weight_of(FORMS[name], p.weights, p.inputs) for _ in range(max(4, -(-300_000_000 // size)))]
        for rows in counts:
            if time.monotonic() - started > limit_s:
                return
            x = normal(rows, p.inputs)
            times = {cut: timed(weights, partial(product, p, x, cut)) for cut in cuts(p, rows)}
            told = f"{name} {p.name} rows={rows} default {times[None]:.2f} us {size / times[None] / 1e6:.2f} TB/s"
            if rows > 1 and narrowed.takes(weights[0], rows):
                us = timed(weights, partial(whole, narrowed, x))
                told += f", narrowed {us:.2f} us"
            print(told)
            best = sorted(times.items(), key=lambda item: item[1])
            for cut, us in best[:4]:
                print(f"    {us:.2f} us {size / us / 1e6:.2f} TB/s {cut}", flush=True)
            if rows == 1:
                keep(weights[0], p, next(cut for cut, _ in best if cut is not None))


def keep(weight: Weight, p: Product, shape: Cut) -> None:
    """Enter the best shape of one row's product into the data of this device."""
    assert isinstance(shape, gemv.Shape)
    file = Path(tuned.__file__).parent / (torch.cuda.get_device_name().lower().replace(" ", "-") + ".json")
    rules = json.loads(file.read_text()) if file.is_file() else {}
    when = {"inputs": p.inputs, "outputs": p.outputs, "gate": int(bool(p.gate)), "bits": weight.bits}
    when |= {"floats": int(weight.storage.form.element.startswith("fp")), "whole": int(gemv.counts(weight))}
    kept = [rule for rule in rules.get("one quantized row", []) if rule["when"] != when]
    rules["one quantized row"] = [*kept, {"when": when, "use": asdict(shape)}]
    lines = [f"  {json.dumps(k)}: [\n    " + ",\n    ".join(map(json.dumps, v)) + "\n  ]" for k, v in rules.items()]
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def many() -> None:
    for p, rows in itertools.product((MODELS["8b"][0], MODELS["8b"][2]), (128, 256, 512, 2048, 8192)):
        flops, x = 2 * rows * p.weights * p.inputs, normal(rows, p.inputs)
        plain = [normal(p.weights, p.inputs) for _ in range(2)]
        told = []
        us = graph_us(lambda x=x, plain=plain: [F.linear(x, w) for w in plain], 4) / 2
        told.append(f"bfloat16 {us:.0f} us {flops / us / 1e6:.0f} TFLOP/s")
        for name in ("fp8", "int8", "int4", "nvfp4"):
            weights = [weight_of(FORMS[name], p.weights, p.inputs) for _ in range(2)]
            kernel = narrowed if narrowed.takes(weights[0], rows) else unpacked
            us = timed(weights, partial(whole, kernel, x))
            told.append(f"{name} {us:.0f} us")
        us = graph_us(partial(narrowed.rounded, x, torch.float8_e4m3fn), 4)
        told.append(f"rounding {us:.1f} us")
        us = graph_us(partial(unpacked.values, weights[0], 0, p.weights, BF16), 4)
        told.append(f"unpacking nvfp4 {us:.1f} us")
        print(f"{p.name} rows={rows}: {', '.join(told)}", flush=True)
    blocks()


def blocks() -> None:
    """Whether the library multiplies blocks of 128 x 128 scales, and how fast."""
    rows, outputs, inputs = 8192, 6144, 4096
    x = normal(rows, inputs).to(torch.float8_e4m3fn)
    w = normal(outputs, inputs).to(torch.float8_e4m3fn)
    for first, second in itertools.product((False, True), repeat=2):
        a, b = torch.rand(rows, inputs // 128, device="cuda"), torch.rand(outputs // 128, inputs // 128, device="cuda")
        a = a.T.contiguous().T if first else a
        b = b.T if not second else b.T.contiguous()
        try:
            us = graph_us(lambda a=a, b=b: torch._scaled_mm(x, w.T, a, b, out_dtype=BF16), 4)
            out = torch._scaled_mm(x, w.T, a, b, out_dtype=BF16)
            wide = x.float() * a.repeat_interleave(128, 1)
            exact = wide @ (w.float() * b.T.repeat_interleave(128, 0).repeat_interleave(128, 1)).T
            error = float((out.float() - exact).norm() / exact.norm())
            print(f"blocks, strides {a.stride()} {b.stride()}: {us:.0f} us, error {error:.4f}")
        except Exception as error:
            print(f"blocks, strides {a.stride()} {b.stride()}: {type(error).__name__} {str(error)[:160]}")


if __name__ == "__main__":
    with torch.inference_mode():
        if sys.argv[1] == "tune":
            tune(tuple(map(int, sys.argv[2:])) or (1, 16, 64))
        else:
            {"check": check, "many": many}[sys.argv[1]]()
