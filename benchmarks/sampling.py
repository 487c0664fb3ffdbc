"""Sampling over large vocabularies: Triton's kernels held against the reference, then timed beside torch's operators.

    python benchmarks/sampling.py [check] [time] [engine] [--device cuda|cpu] [--ledger FILE]

check   tokens of 64 rows with mixed settings, for four vocabularies and two dtypes, equal those of the reference
time    a step of the sampler for each setting and batch: device time, and host time to launch it
engine  decode-64 of Qwen3-0.6B, greedy and with temperature 0.7, top_p 0.9, top_k 50, one after the other
host    what a step of Qwen3-0.6B takes of the host but waiting, for each setting and batch (--batches 1,64,256,1024)

One JSON line a figure.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import torch
from lib import ledger, shapes
from torch import Tensor

from quire.cli.workloads import workload
from quire.messages.params import SamplingParams
from quire.messages.plan import NewRow
from quire.ops.draw import RowTable, draw_tokens, sample_table
from quire.ops.registry import load_providers
from quire.platforms import native
from quire.sampling.kernels import choose_kernels
from quire.sampling.sampler import Sampler

VOCAB = 151_936
SETTINGS = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.7},
    "top_k": {"temperature": 0.7, "top_k": 50},
    "top_p": {"temperature": 0.7, "top_p": 0.9},
    "min_p": {"temperature": 0.7, "min_p": 0.05},
    "top_k, top_p": {"temperature": 0.7, "top_k": 50, "top_p": 0.9},
    "penalties": {"temperature": 0.7, "repetition_penalty": 1.1, "presence_penalty": 0.5},
    "logprobs": {"temperature": 0.0, "logprobs": 5},
    "early ends": {"temperature": 0.7, "min_tokens": 30, "stop_token_ids": [5, 6]},
}
SCALES = {"flat": 1.0, "peaked": 4.0}
"""Logits of random weights are flat: a third of all tokens is in their nucleus. Those of trained ones are peaked."""


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["check", "time"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batches", type=lambda text: [int(n) for n in text.split(",")], default=[1, 64, 256])
    parser.add_argument("--ledger", type=Path, default=ledger.LEDGER / "sampling.jsonl")
    args = parser.parse_args()
    device = torch.device(args.device)
    own = "triton" if device.type != "cpu" else "cpu" if native.is_built() else None
    providers = [own, "torch_native"] if own else ["torch_native"]
    load_providers(providers)
    with torch.inference_mode():
        if "check" in args.what:
            check(providers[0], device)
        if "time" in args.what:
            for batch in args.batches:
                for provider in providers:
                    measure(provider, batch, device, args.ledger)
    if "engine" in args.what:
        measure_engine(args.ledger)
    if "host" in args.what:
        measure_host(args.batches, args.ledger)


def check(provider: str, device: torch.device) -> None:
    """Tokens against the reference; the largest difference is one of rounding, at a cut or between two noisy logits."""
    function = draw_tokens.providers[provider].function
    for vocab in (VOCAB, 128_256, 50_257, 17):
        for dtype in (torch.float32, torch.bfloat16):
            for scale in (0.0, 1.0, 4.0):
                logits = (torch.randn(64, vocab, device=device) * scale).to(dtype)
                logits[5, 7], logits[6, 9] = torch.nan, torch.inf
                table = mixed(vocab, device)
                rows = torch.randperm(64, device=device)
                known = torch.arange(64, dtype=torch.int32, device=device)
                want = draw_tokens(logits, rows, known, table)
                wrong = (function(logits, rows, known, table, None) != want).any(0).nonzero().flatten()
                told = [[*table.numbers[rows[i], :3].tolist(), int(table.integers[rows[i], 0])] for i in wrong]
                print(f"check {vocab} {dtype} scale {scale}: {len(wrong)} of 64 differ {told}", flush=True)


def mixed(vocab: int, device: torch.device) -> RowTable:
    """64 rows of all kinds."""
    kinds = [
        (t, k, p, m) for t in (0.7, 1.5) for k in (0, 50, 1, 3000) for p in (1.0, 0.9, 0.3, 1e-9) for m in (0.0, 0.05)
    ]
    kinds[3] = (0.0, 0, 1.0, 0.0)
    temperature, top_k, top_p, min_p = (list(column) for column in zip(*kinds, strict=True))
    table = sample_table(vocab, temperature, [min(k, vocab) for k in top_k], top_p, min_p)
    return RowTable(table.numbers.to(device), table.integers.to(device))


def measure(provider: str, batch: int, device: torch.device, file: Path) -> None:
    """Steps of a sampler whose ops are `provider`'s."""
    for scale_name, scale in SCALES.items():
        logits = torch.randn(batch, VOCAB, device=device).mul_(scale).bfloat16()
        for name, setting in SETTINGS.items():
            if scale_name == "flat" and name not in ("top_p", "top_k, top_p"):
                continue
            if provider == "torch_native" and device.type != "cpu" and (name == "top_p") and batch > 64:
                continue  # sorting 256 rows takes memory that nobody has to spare
            known, step = stepper(provider, batch, device, SamplingParams(**setting), logits)
            time_step(known, step, f"{name}, {scale_name} logits, batch {batch} x {VOCAB}", provider, device, file)


def stepper(
    provider: str, batch: int, device: torch.device, params: SamplingParams, logits: Tensor
) -> tuple[Tensor, Callable[[], object]]:
    """How many tokens each row has, and what launches one step of the sampler."""
    sampler = Sampler(batch, VOCAB, 64, device, kernels=choose_kernels([provider]))
    for row in range(batch):
        sampler.begin(NewRow(row, [1, 2, 3], 3, 0, [], params, row, [], [], 64))
    rows, history = list(range(batch)), torch.zeros(batch, 64, dtype=torch.int32, device=device)
    known = torch.full((batch,), 3, dtype=torch.int32, device=device)
    at = torch.arange(batch, device=device)
    return known, lambda: sampler.sample(logits, rows, at, history, known)


def time_step(
    known: Tensor, step: Callable[[], object], what: str, provider: str, device: torch.device, file: Path
) -> None:
    """Device time and host time of a step, which draws for another position each time."""
    line = {"machine": machine(device), "engine": f"quire, kernels {provider} (torch {torch.__version__})"}
    line |= {"commit": ledger.commit(), "model": None, "quantization": None, "kv_cache_dtype": None, "workload": what}
    # On a CPU until threads that slept have cores of their own.
    runs, until = (50, time.perf_counter() + 0.2) if device.type == "cpu" else (10, 0.0)
    step()
    step()
    while time.perf_counter() < until:
        step()
    host, whole = [], []
    for _ in range(runs):
        known += 1
        synchronize(device)
        start = time.perf_counter()
        step()
        host.append(time.perf_counter() - start)
        synchronize(device)
        whole.append(time.perf_counter() - start)
    figures = {"host": statistics.median(host) * 1e6}
    if device.type == "cpu":
        figures = {"time": statistics.median(whole) * 1e6}
    else:
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        torch.cuda._sleep(20_000_000)  # so that the launches are all queued before the first of them runs
        events[0].record()
        for _ in range(runs):
            step()
        events[1].record()
        torch.cuda.synchronize()
        figures["time"] = events[0].elapsed_time(events[1]) * 1e3 / runs
    for metric, value in figures.items():
        ledger.append(
            file,
            line
            | {"metric": metric, "value": round(value, 1), "unit": "us", "runs": runs, "command": ledger.command()},
        )
    print(f"{provider:13} {what:52} " + "  ".join(f"{k} {v:9.1f} us" for k, v in figures.items()), flush=True)


def measure_engine(file: Path) -> None:
    """decode-64 with and without sampling, three times in turn."""
    import quire

    choices = {"greedy": SETTINGS["greedy"], "temperature 0.7, top_p 0.9, top_k 50": SETTINGS["top_k, top_p"]}
    choices |= {name: SETTINGS[name] for name in ("temperature", "top_p", "penalties", "logprobs")}
    with tempfile.TemporaryDirectory() as folder:
        path = shapes.write("qwen3-0.6b", Path(folder))
        settings = {"load_format": "dummy", "max_model_len": 4096, "log_level": "warning"}
        with closing(quire.LLM(str(path), **settings)) as llm:
            speeds: dict[str, list[float]] = {name: [] for name in choices}
            for turn in range(3):
                for name, setting in choices.items():
                    works = workload("decode-64", f"{name} {turn}")
                    params = [
                        SamplingParams(max_tokens=w.output_tokens, ignore_eos=True, detokenize=False, seed=i, **setting)
                        for i, w in enumerate(works)
                    ]
                    start = time.perf_counter()
                    llm.generate([{"prompt_token_ids": w.prompt} for w in works], params, use_tqdm=False)
                    speeds[name].append(sum(w.output_tokens for w in works) / (time.perf_counter() - start))
            for name, found in speeds.items():
                line = {"commit": ledger.commit(), "machine": machine(torch.device("cuda"))}
                line |= {"engine": f"quire (torch {torch.__version__})", "model": "qwen3-0.6b", "quantization": None}
                line |= {"kv_cache_dtype": None, "workload": f"decode-64, {name}", "metric": "output_tokens_per_s"}
                value = statistics.median(found[1:])
                ledger.append(
                    file, line | {"value": round(value), "unit": "tok/s", "runs": 2, "command": ledger.command()}
                )
                print(f"decode-64 {name:40} {[round(v) for v in found]} tok/s", flush=True)


def measure_host(batches: list[int], file: Path) -> None:
    """Microseconds of the core's turn without its wait, and of its phases."""
    from lib import profiling
    from lib.engines import Quire

    names = ("greedy", "top_k, top_p", "penalties", "logprobs", "early ends")
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(Quire(shapes.write("qwen3-0.6b", Path(folder)), {})) as engine,
    ):
        line = {"commit": ledger.commit(), "machine": machine(torch.device("cuda"))}
        line |= {"engine": f"quire (torch {torch.__version__})", "model": "qwen3-0.6b", "quantization": None}
        line |= {"kv_cache_dtype": None, "metric": "host work per step", "unit": "us", "runs": 1}
        for batch in batches:
            for name in names:
                times = profiling.host_times(engine, batch, SETTINGS[name])
                work = times["turn"] - times.get("wait", 0.0)
                what = {"workload": f"{name}, {batch} running", "value": round(work), "command": ledger.command()}
                ledger.append(file, line | what)
                phases = ", ".join(f"{phase} {us:.0f}" for phase, us in times.items())
                print(f"host {batch:5} {name:14} {work:6.0f} us: {phases}", flush=True)


def machine(device: torch.device) -> str:
    """What was measured on."""
    return torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
