"""Attention on a GPU: providers against the reference, and their times in graphs, on more memory than caches hold.

    python benchmarks/attention.py [check] [time] [tune]

Prints a table: microseconds a layer, and TB/s of keys and values read (decoding) or TFLOP/s (prompts).
"""

import argparse
import dataclasses
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import torch
from lib.recorded import microseconds
from torch import Tensor

from quire.messages.state import Retention
from quire.ops.attention import AttentionSpec, HeadWeights, KVPages, attend, paged_attention, prepare
from quire.ops.registry import load_providers
from quire.ops.step import GroupInputs, StepInputs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MODELS = {"0.6b": (16, 8, 128), "8b": (32, 8, 128), "30b": (32, 4, 128)}
WORKERS = 12


def spec_of(heads: int, kv_heads: int, dim: int, **extra) -> AttentionSpec:
    given = {"dtype": "bfloat16", "norm_eps": 1e-6, "rotary_dim": dim} | extra
    return AttentionSpec(heads, kv_heads, dim, dim**-0.5, device=DEVICE, **given)


def a_step(queries: list[int], lengths: list[int], page: int, first_page: int = 1) -> tuple[StepInputs, int]:
    """A step over shuffled pages, and how many pages there are."""
    counts = [-(-n // page) for n in lengths]
    order = torch.randperm(sum(counts)) + first_page
    table = torch.zeros(len(lengths), max(counts), dtype=torch.int32)
    at = 0
    for i, count in enumerate(counts):
        table[i, :count] = order[at : at + count]
        at += count
    query, length = torch.tensor(queries), torch.tensor(lengths)
    owner = torch.repeat_interleave(torch.arange(len(queries)), query)
    start = torch.cat([torch.zeros(1, dtype=torch.long), query.cumsum(0)])
    position = (torch.arange(int(query.sum())) - start[owner] + (length - query)[owner]).clamp(min=0)
    slots = table[owner, position // page].long() * page + position % page
    slots[length[owner] == 0] = 0
    step = StepInputs(
        token_ids=position.to(DEVICE),
        positions=position.to(DEVICE),
        query_start=start.int().to(DEVICE),
        seq_lens=length.int().to(DEVICE),
        logit_rows=(start[1:] - 1).to(DEVICE),
        groups=(GroupInputs(table.to(DEVICE), slots.to(DEVICE), page),),
        max_query=max(queries),
        max_seq=max(lengths),
    )
    return step, sum(counts) + first_page


def pools(spec: AttentionSpec, pages: int, page: int) -> KVPages:
    shape = (pages, page, spec.kv_heads, spec.head_dim)
    dtype, kept = getattr(torch, spec.dtype), getattr(torch, spec.kept)
    return KVPages(*(torch.randn(shape, device=DEVICE, dtype=dtype).to(kept) for _ in range(2)))


def weights_of(spec: AttentionSpec, positions: int) -> HeadWeights:
    half = spec.rotary_dim // 2
    angle = torch.arange(positions, device=DEVICE)[:, None] * 10000.0 ** (-torch.arange(half, device=DEVICE) / half)
    norms = [1 + 0.1 * torch.randn(spec.head_dim, device=DEVICE, dtype=getattr(torch, spec.dtype)) for _ in range(2)]
    table = torch.cat([angle.cos(), angle.sin()], -1)
    return HeadWeights(table, *norms) if spec.norm_eps else HeadWeights(table)


def spoil(spec: AttentionSpec, step: StepInputs, kv: KVPages) -> None:
    """NaN wherever nothing may be read: beyond lengths, before windows, and in pages of nobody."""
    page = step.groups[0].page_size
    keep = torch.zeros(kv.k.shape[:2], dtype=torch.bool, device=DEVICE).view(-1)
    counts = step.query_start.diff().tolist()
    for i, (count, length) in enumerate(zip(counts, step.seq_lens.tolist(), strict=True)):
        at = torch.arange(Retention(window=spec.window).first_needed(max(length - count, 0)), length, device=DEVICE)
        keep[step.groups[0].page_table[i, at // page].long() * page + at % page] = True
    for pool in (kv.k, kv.v):
        pool.view(-1, *pool.shape[2:])[~keep] = math.nan


def error(got: Tensor, want: Tensor) -> float:
    return float((got.float() - want.float()).norm() / want.float().norm().clamp(min=1e-20))


def cases() -> Iterator[tuple[AttentionSpec, list[int], list[int], int]]:
    decode = [1, 2, 17, 128, 129, 130, 1200, 2049, 5000, 0, 300]
    ragged = ([1, 300, 64, 1, 129, 37, 2], [700, 300, 1000, 1, 140, 37, 4000])
    for dtype in ("bfloat16", "float16", "float32"):
        for heads, kv_heads, dim in ((16, 8, 128), (32, 8, 64), (14, 2, 64), (8, 8, 80), (4, 2, 96), (8, 1, 256)):
            for extra in ({}, {"window": 200}, {"soft_cap": 5.0, "window": 37, "norm_eps": None}):
                for page in (16, 64) if dtype == "bfloat16" else (64,):
                    spec = spec_of(heads, kv_heads, dim, dtype=dtype, **extra)
                    yield dataclasses.replace(spec, step="decode"), [1] * len(decode), decode, page
                    yield spec, *ragged, page


def check(first: int = 0, every: int = 1, names: tuple[str, ...] = ("triton", "cudnn")) -> None:
    """Every provider against the reference in float32 on the same values."""
    worst: dict[tuple[str, str, str], float] = {}
    for spec, queries, lengths, page in list(cases())[first::every]:
        if all(op.providers[n].refuses(spec) for n in names for op in (attend, paged_attention) if n in op.providers):
            continue
        step, pages = a_step(queries, lengths, page)
        kv = pools(spec, pages, page)
        spoil(spec, step, kv)
        w = weights_of(spec, max(lengths) + 1)
        dtype = getattr(torch, spec.dtype)
        qkv = torch.randn(sum(queries), sum(spec.parts) * spec.head_dim, device=DEVICE, dtype=dtype)
        wide = KVPages(kv.k.float(), kv.v.float())
        wide_w = HeadWeights(w.table, *(None if n is None else n.float() for n in (w.q_norm, w.k_norm)))
        wide_spec = dataclasses.replace(spec, dtype="float32")
        want_q = prepare(qkv.float(), wide_w, wide, step, wide_spec)
        want = paged_attention(want_q, wide, step, wide_spec)
        for name in names:
            for op in (attend, prepare, paged_attention):
                provider = op.providers.get(name)
                if provider is None or provider.refuses(spec):
                    continue
                own = KVPages(kv.k.clone(), kv.v.clone())
                if op is paged_attention:
                    q = prepare(qkv, w, own, step, spec)
                    got = provider.function(q, own, step, spec)
                    expected = paged_attention(q.float(), KVPages(own.k.float(), own.v.float()), step, wide_spec)
                else:
                    got = provider.function(qkv, w, own, step, spec)
                    expected = want_q if op is prepare else want.flatten(1)
                found = error(got, expected)
                if op is not paged_attention:
                    for pool, ref in ((own.k, wide.k), (own.v, wide.v)):
                        same = torch.isnan(pool) == torch.isnan(ref)
                        found = max(found, error(pool.nan_to_num(), ref.nan_to_num()), 0.0 if same.all() else math.nan)
                limit = 3e-5 if spec.dtype == "float32" else 8e-3
                if not found < limit:
                    print(f"WRONG {name} {op.name} {found:.2e} {spec} page {page}", flush=True)
                key = (name, op.name, spec.dtype)
                worst[key] = max(worst.get(key, 0.0), found)
    for key, value in worst.items():
        print("checked", *key, f"worst {value:.1e}")


def decode_case(
    model: str, rows: int, length: int, page: int = 64, kept: str = "bfloat16"
) -> tuple[Callable[[str], list], float]:
    """Calls of as many layers as it takes to read half a gigabyte, and the bytes of one."""
    spec = dataclasses.replace(spec_of(*MODELS[model]), step="decode", kv_dtype=kept)
    step, pages = a_step([1] * rows, [length] * rows, page)
    size = 2 * rows * length * spec.kv_heads * spec.head_dim * getattr(torch, kept).itemsize
    layers = [pools(spec, pages, page) for _ in range(min(24, max(2, -(-(400 << 20) // size))))]
    w = weights_of(spec, length + 1)
    qkv = torch.randn(rows, sum(spec.parts) * spec.head_dim, device=DEVICE, dtype=torch.bfloat16)

    def make(name: str) -> list:
        fresh = dataclasses.replace(step, derived={})
        function = attend.providers[name].function
        return [lambda kv=kv: function(qkv, w, kv, fresh, spec) for kv in layers]

    return make, size


def eager_case(
    model: str, queries: list[int], lengths: list[int], page: int = 64
) -> tuple[Callable[[str], list], float]:
    spec = spec_of(*MODELS[model])
    step, pages = a_step(queries, lengths, page)
    kv = pools(spec, pages, page)
    q = torch.randn(sum(queries), spec.heads, spec.head_dim, device=DEVICE, dtype=torch.bfloat16)
    flops = sum(
        4.0 * spec.heads * spec.head_dim * n * (length - (n - 1) / 2)
        for n, length in zip(queries, lengths, strict=True)
    )

    def make(name: str) -> list:
        fresh = dataclasses.replace(step, derived={})
        function = paged_attention.providers[name].function
        return [lambda: function(q, kv, fresh, spec)] * 3

    return make, flops


def prepare_case(model: str, tokens: int) -> tuple[Callable[[str], list], float]:
    spec = spec_of(*MODELS[model])
    step, pages = a_step([tokens], [tokens], 64)
    kv = pools(spec, pages, 64)
    w = weights_of(spec, tokens)
    qkv = [torch.randn(tokens, sum(spec.parts) * 128, device=DEVICE, dtype=torch.bfloat16) for _ in range(6)]
    return (
        lambda name: [lambda x=x: prepare.providers[name].function(x, w, kv, step, spec) for x in qkv],
        2.0 * tokens * sum(spec.parts) * 128 * 2,
    )


DECODES = [("0.6b", 1, 1024), ("8b", 1, 1024), ("30b", 1, 1024), ("8b", 1, 32768), ("0.6b", 64, 1200),
           ("8b", 64, 1200), ("30b", 64, 1200), ("8b", 8, 1200), ("8b", 256, 1200), ("8b", 16, 8192)]  # fmt: skip
EAGERS = [
    ("8b", [2048] * 8, [2048] * 8),
    ("8b", [4096] * 2, [32768] * 2),
    ("8b", [8132] + [1] * 60, [8132] + [1500] * 60),
    ("8b", [512], [512]),
    ("8b", [562], [562]),
    ("0.6b", [2048] * 4, [2048] * 4),
    ("30b", [2048] * 4, [2048] * 4),
    ("8b", [16] * 63 + [1885], [1500] * 63 + [1885]),
]


def name_of(queries: list[int], lengths: list[int]) -> str:
    return f"{len(queries)} x {queries[0]} of {lengths[0]}, {sum(queries)} in all"


NARROW_DECODES = ("0.6b", 256, 840), ("8b", 256, 840), ("0.6b", 64, 1152), ("8b", 16, 1024)


def report() -> None:
    for model, rows, length in DECODES:
        make, size = decode_case(model, rows, length)
        us = microseconds(make("triton"), 5)
        print(f"decode  {model:5} {rows:4} x {length:6}: triton {us:8.1f} us {size / us * 1e-6:6.2f} TB/s", flush=True)
    for model, rows, length in NARROW_DECODES:
        make, size = decode_case(model, rows, length, kept="float8_e4m3fn")
        us = microseconds(make("triton"), 5)
        print(
            f"decode  {model:5} {rows:4} x {length:6} in 8 bits: {us:8.1f} us {size / us * 1e-6:6.2f} TB/s", flush=True
        )
    for model, queries, lengths in EAGERS:
        make, flops = eager_case(model, queries, lengths)
        line = f"prefill {model:5} {name_of(queries, lengths):32}:"
        for name in ("triton", "cudnn"):
            provider = paged_attention.providers[name]
            if provider.refuses(spec_of(*MODELS[model], step="prompts")) is None:
                us = microseconds(make(name), 3)
                line += f" {name} {us:8.1f} us {flops / us * 1e-6:6.1f} TFLOP/s"
        print(line, flush=True)
    for tokens in (1, 64, 8192):
        make, size = prepare_case("8b", tokens)
        us = microseconds(make("triton"), 5)
        print(f"prepare 8b    {tokens:6}: {us:8.1f} us {size / us * 1e-6:6.2f} TB/s", flush=True)


def variants() -> list[tuple[str, object]]:
    from quire.kernels.triton.attention.decode import Shape as DecodeShape
    from quire.kernels.triton.attention.prefill import Shape as PrefillShape

    decodes = [
        DecodeShape(*v)
        for v in ((True, 32, 64, 5, 4), (True, 32, 128, 5, 8), (True, 16, 64, 7, 4), (False, 32, 64, 5, 4, 3, 168),
                  (False, 32, 64, 5, 4, 2), (False, 32, 64, 7, 4, 2), (False, 32, 32, 9, 4, 3, 168))
    ]  # fmt: skip
    prefills = [PrefillShape(*v) for v in ((128, 64, 5, 8, True), (64, 64, 5, 4, True), (128, 64, 7, 8, True),
                                           (128, 64, 5, 8, False), (64, 64, 5, 4, False))]  # fmt: skip
    return [("decode", v) for v in decodes] + [("prefill", v) for v in prefills]


def with_variant(kind: str, shape: object) -> None:
    from quire.kernels.triton.attention import decode, prefill

    if kind == "decode":
        decode.shape_of = lambda *facts: shape
    else:
        prefill.shape_of = lambda dim, dtype, lines, engine: shape


def tune(only: slice = slice(None), run: bool = True) -> None:
    for kind, shape in variants()[only]:
        with_variant(kind, shape)
        line = f"{kind} {shape}:".replace("Shape", "")
        try:
            if kind == "decode":
                for model, rows, length in (
                    DECODES[:1] + DECODES[3:7] if run else [("8b", 1, 600), ("0.6b", 1, 600), ("30b", 1, 600)]
                ):
                    make, size = decode_case(model, rows, length)
                    if not run:
                        make("triton")[0]()
                        continue
                    us = microseconds(make("triton"), 3)
                    line += f" {us:6.1f}us {size / us * 1e-6:.2f}"
            else:
                for model, queries, lengths in EAGERS[:3] if run else [("8b", [300], [300])]:
                    make, flops = eager_case(model, queries, lengths)
                    if not run:
                        make("triton")[0]()
                        continue
                    us = microseconds(make("triton"), 3)
                    line += f" {us:8.1f}us {flops / us * 1e-6:.0f}"
        except Exception as failure:
            line += f" {type(failure).__name__}: {str(failure)[:90]}"
        if run:
            print(line, flush=True)


def compile_all() -> None:
    started = time.time()
    workers = [subprocess.Popen([sys.executable, __file__, "compile", f"{i}"]) for i in range(WORKERS)]
    for worker in workers:
        worker.wait()
    print(f"compiled in {time.time() - started:.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="+")
    what = parser.parse_args().what
    torch.manual_seed(1)
    load_providers(["triton", "cudnn"])
    if what[0] == "compile":
        return tune(slice(int(what[1]), None, WORKERS), run=False)
    started = time.time()
    for item in what:
        if item == "check":
            check(*((5, 37) if DEVICE == "cpu" else (0, 1)))
        elif item == "cudnn":
            check(names=("cudnn",))
        elif item == "time":
            print(
                "cudnn:",
                paged_attention.providers["cudnn"].refuses(spec_of(*MODELS["8b"], step="prompts")) or "offered",
            )
            report()
        elif item == "tune":
            compile_all()
            tune()
        print(f"{item}: {time.time() - started:.1f} s", flush=True)
    return None


if __name__ == "__main__":
    main()
