"""Measures quire on the CPU with its own compiled kernels and without them, side by side in one process.

    python benchmarks/cpu.py [--runs 3] [--kernels auto torch_native]

The shape is Qwen3-0.6B with random weights in bfloat16. A is decoding alone (prompt 128, 128 new tokens: the time for
those less the time for the first), B one prompt of 1,024 tokens, C1 16 requests of 128 + 64 tokens at once. Engines
take turns, so that a slow moment of the machine meets all; each turn begins with a probe of the read bandwidth.
Medians are printed and appended to benchmarks/ledger/cpu.jsonl. The probe needs g++. Peak memory is that of a
process of its own which loads the model from files: what it ever had beyond torch, over the bytes of the weights.
"""

import argparse
import ctypes
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lib import checkpoint, ledger, shapes

from quire.config.environ import become_computing

become_computing()

import torch  # noqa: E402

import quire  # noqa: E402

LEDGER = ledger.LEDGER / "cpu.jsonl"
MODEL = "qwen3-0.6b"
PROBE_BYTES = 1 << 30


def main() -> None:
    """Measure, print, record."""
    args = arguments()
    with tempfile.TemporaryDirectory() as name:
        probe = bandwidth_probe(Path(name))
        folder = shapes.write(MODEL, Path(name))
        engines = {kernels: start(folder, kernels) for kernels in args.kernels}
        for llm in engines.values():
            seconds(llm, 16, 128, 4)
        found = {kernels: dict[str, list[float]]() for kernels in engines}
        for _ in range(args.runs):
            for kernels, llm in engines.items():
                for metric, value in {"read bandwidth, GB/s": probe(), **rounds(llm)}.items():
                    found[kernels].setdefault(metric, []).append(value)
        for llm in engines.values():
            llm.close()
        for kernels in engines:
            found[kernels]["peak memory, times the weights"] = [peak(checkpoint.write(MODEL, Path(name)), kernels)]
    show(found)
    record(found, args.runs)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=3, help="repetitions of each engine [3]")
    parser.add_argument("--kernels", nargs="+", default=["auto", "torch_native"], help="settings to compare")
    return parser.parse_args()


def start(folder: Path, kernels: str) -> quire.LLM:
    """An engine on random weights."""
    return quire.LLM(
        str(folder),
        load_format="dummy",
        dtype="bfloat16",
        device="cpu",
        kernels=kernels,
        max_model_len=2048,
        kv_cache_memory_bytes=1 << 30,
        enable_prefix_caching=False,
        log_level="warning",
    )


def rounds(llm: quire.LLM) -> dict[str, float]:
    """Metric to tokens per second, each workload once."""
    decode = seconds(llm, 1, 128, 128) - seconds(llm, 1, 128, 1)
    return {
        "A decode, tok/s": 127 / decode,
        "B prefill, tok/s": 1024 / seconds(llm, 1, 1024, 1),
        "C1 16 x (128 + 64), tok/s": 16 * 64 / seconds(llm, 16, 128, 64),
    }


def seconds(llm: quire.LLM, requests: int, prompt: int, new: int) -> float:
    """Wall-clock seconds for so many requests at once."""
    rng = random.Random(0)
    prompts = [{"prompt_token_ids": [rng.randrange(300, 150_000) for _ in range(prompt)]} for _ in range(requests)]
    params = quire.SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True, detokenize=False)
    begin = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    return time.perf_counter() - begin


LOAD = """
import sys
from quire.config.environ import become_computing
become_computing()
import quire
if sys.argv[1:]:
    llm = quire.LLM(sys.argv[1], device="cpu", kernels=sys.argv[2], kv_cache_memory_bytes=64 << 20, max_model_len=512)
else:
    import torch
high = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(int(high.split()[1]) << 10)
"""


def peak(folder: Path, kernels: str) -> float:
    """Most memory that loading takes beyond torch, over the bytes of the weights; 64 MiB of pages are part of it."""
    loaded, bare = (
        int(subprocess.run([sys.executable, "-c", LOAD, *words], capture_output=True, text=True, check=True).stdout)
        for words in ([str(folder), kernels], [])
    )
    return (loaded - bare) / (folder / "model.safetensors").stat().st_size


def bandwidth_probe(folder: Path):
    """A function that reads 1 GiB of memory with all threads, thrice, and returns the best rate in GB/s."""
    library = folder / "read_memory.so"
    source = Path(__file__).parent / "lib" / "read_memory.cpp"
    flags = ["-O3", "-march=native", "-shared", "-fPIC", "-fopenmp", "-Wno-psabi"]
    subprocess.run(["g++", *flags, str(source), "-o", str(library)], check=True)
    read = ctypes.CDLL(str(library)).read_memory
    read.argtypes = [ctypes.c_void_p, ctypes.c_long, ctypes.c_int]
    data = torch.ones(PROBE_BYTES // 8, dtype=torch.int64)

    def probe() -> float:
        times = []
        for _ in range(3):
            begin = time.perf_counter()
            read(data.data_ptr(), PROBE_BYTES, torch.get_num_threads())
            times.append(time.perf_counter() - begin)
        return PROBE_BYTES / min(times) / 1e9

    return probe


def show(found: dict[str, dict[str, list[float]]]) -> None:
    """Print medians, and each against the last engine's."""
    last = list(found)[-1]
    for kernels, metrics in found.items():
        for metric, values in metrics.items():
            median, other = statistics.median(values), statistics.median(found[last][metric])
            print(f"{kernels:<14}{metric:<28}{median:8.2f}   {median / other:5.2f} times {last}")


def record(found: dict[str, dict[str, list[float]]], runs: int) -> None:
    """Append a line per figure to the ledger."""
    for kernels, metrics in found.items():
        for metric, values in metrics.items():
            line = {
                "commit": ledger.commit(),
                "machine": ledger.machine(),
                "engine": f"quire {quire.__version__}, kernels {kernels} (torch {torch.__version__})",
                "model": f"{MODEL}, random weights",
                "dtype": "bfloat16",
                "threads": torch.get_num_threads(),
                "metric": metric,
                "value": round(statistics.median(values), 2),
                "all": [round(value, 2) for value in values],
                "runs": runs,
                "command": ledger.command(),
            }
            ledger.append(LEDGER, line)


if __name__ == "__main__":
    main()
