"""Measures how fast real weight files load, against a plain read of the same files from the page cache.

    python benchmarks/loading.py [--models qwen3-0.6b,llama-8b] [--folder /dev/shm] [--runs 3] [--ledger FILE]

Writes sharded checkpoints of random values (1.2 GB and 16 GB) and removes them. Without a GPU, only the small one.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from lib import ledger, shapes
from safetensors import safe_open

from quire import loading, models
from quire.checkpoint.headers import read_headers
from quire.checkpoint.read import read_facts
from quire.layers.build import Build
from quire.layers.model import Model
from quire.loading.load import MAX_READERS
from quire.loading.recipe import weights_of
from quire.parallel.mesh import Mesh

SHARD_BYTES = 4 << 30
BLOCK_BYTES = 16 << 20
SMALL = "qwen3-0.6b"


def main() -> int:
    """Measure, print, record."""
    args = arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = args.models.split(",") if device.type == "cuda" else [SMALL]
    for name in chosen:
        with tempfile.TemporaryDirectory(prefix="quire-bench-", dir=args.folder) as parent:
            folder = shapes.write(name, Path(parent))
            nbytes = write_weights(folder)
            plain = nbytes / best(lambda folder=folder: read_plainly(folder, 1), args.runs)
            spread = nbytes / best(lambda folder=folder: read_plainly(folder, MAX_READERS), args.runs)
            times = [load_once(folder, device) for _ in range(args.runs)]
            dummy_s = best(lambda folder=folder: fill_with_dummies(folder, device), args.runs)
        show(name, nbytes, {"one reader": plain, f"{MAX_READERS} readers": spread}, times)
        print(f"{name}: built with random weights in {dummy_s:.2f} s", flush=True)
        record(args, name, device, nbytes, times, spread)
    return 0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", default="qwen3-0.6b,llama-8b", help="of " + ", ".join(shapes.MODELS))
    parser.add_argument("--folder", help="where the files are written; they should fit into the page cache")
    parser.add_argument("--runs", type=int, default=3, help="repetitions [3]")
    parser.add_argument("--ledger", type=Path, help="file that gets the figures [gpu.jsonl or cpu.jsonl]")
    parser.add_argument("--commit", default=ledger.commit(), help="what is measured, where git cannot tell")
    return parser.parse_args()


def build(folder: Path, device: torch.device) -> Model:
    """The model of `folder` with parameters that hold nothing yet."""
    facts = read_facts(folder.name, folder)
    return models.build(facts, Build(mesh=Mesh(), dtype=torch.bfloat16, device=device, max_model_len=4096))


def write_weights(folder: Path) -> int:
    """Write every tensor that the model asks for, in shards with an index; returns the bytes of the data."""
    parts = [part for weight in weights_of(build(folder, torch.device("meta"))) for part in weight.recipe.parts]
    shapes_of = {part.name: part.shape for part in parts}
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    room = SHARD_BYTES
    for name, shape in shapes_of.items():
        size = 2 * torch.Size(shape).numel()
        if size > room and shards[-1]:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][name] = shape
        room -= size
    files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    with ThreadPoolExecutor(MAX_READERS) as pool:
        total = sum(pool.map(lambda i: write_shard(folder / files[i], shards[i]), range(len(shards))))
    index = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}), encoding="utf-8")
    return total


def write_shard(file: Path, tensors: dict[str, tuple[int, ...]]) -> int:
    """One safetensors file of random bf16 values; returns the bytes of its data."""
    values = torch.randn((BLOCK_BYTES + 4096) // 2).bfloat16().view(torch.uint8).numpy()
    header, offset = {}, 0
    for name, shape in tensors.items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb", buffering=0) as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for i, begin in enumerate(range(0, offset, BLOCK_BYTES)):
            # Another beginning each, so that no two blocks are equal.
            first = i * 2 % 4096
            stream.write(values[first : first + min(BLOCK_BYTES, offset - begin)].data)
    return offset


def read_plainly(folder: Path, readers: int) -> None:
    """Read every file into a buffer of each thread, and do nothing with it."""
    jobs = [
        (file, offset)
        for file in sorted(folder.glob("*.safetensors"))
        for offset in range(0, file.stat().st_size, BLOCK_BYTES)
    ]

    def read(share: int) -> None:
        buffer = bytearray(BLOCK_BYTES)
        for file, offset in jobs[share::readers]:
            descriptor = os.open(file, os.O_RDONLY)
            os.preadv(descriptor, [buffer], offset)
            os.close(descriptor)

    with ThreadPoolExecutor(readers) as pool:
        list(pool.map(read, range(readers)))


def load_once(folder: Path, device: torch.device) -> float:
    """Seconds to fill a new model on `device`; some tensors are compared with the files afterwards."""
    model = build(folder, device)
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    loading.load(model, loading.opened(read_facts(folder.name, folder)), Mesh())
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    entries = read_headers(folder)
    for weight in weights_of(model)[::17]:
        row = 0
        for part in weight.recipe.parts:
            rows = part.taken(0, 1)[0]
            with safe_open(entries[part.name].file, "pt", device=str(device)) as file:
                if not torch.equal(weight.data[row : row + rows], file.get_tensor(part.name)):
                    raise SystemExit(f"{part.name} was loaded wrongly")
            row += rows
    return seconds


def fill_with_dummies(folder: Path, device: torch.device) -> None:
    """Build the model with random weights."""
    model = build(folder, device)
    loading.fill_dummy(model, 0, Mesh())
    if device.type == "cuda":
        torch.cuda.synchronize()


def best(function: Callable[[], object], runs: int) -> float:
    """Seconds of the fastest call."""
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)


def show(name: str, nbytes: int, plain: dict[str, float], times: list[float]) -> None:
    """Print a line."""
    reads = ", ".join(f"{what} {rate / 1e9:.1f} GB/s" for what, rate in plain.items())
    rates = ", ".join(f"{t:.2f} s ({nbytes / t / 1e9:.1f} GB/s)" for t in times)
    print(f"{name}, {nbytes / 1e9:.1f} GB: plain reads {reads}; loads {rates}", flush=True)


def record(
    args: argparse.Namespace, name: str, device: torch.device, nbytes: int, times: list[float], plain: float
) -> None:
    """Append a line to the ledger."""
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    line = {
        "commit": args.commit,
        "machine": f"{where}, {os.cpu_count()} host cores",
        "engine": "quire",
        "model": name,
        "quantization": None,
        "kv_cache_dtype": None,
        "workload": "load files",
        "metric": "bytes of weights per second, from the page cache",
        "value": round(nbytes / min(times) / 1e9, 2),
        "unit": "GB/s",
        "median": round(nbytes / statistics.median(times) / 1e9, 2),
        "runs": len(times),
        "bound": round(plain / 1e9, 2),
        "command": ledger.command(("--ledger", "--commit", "--folder")),
    }
    ledger.append(args.ledger or ledger.LEDGER / ("gpu.jsonl" if device.type == "cuda" else "cpu.jsonl"), line)


if __name__ == "__main__":
    sys.exit(main())
