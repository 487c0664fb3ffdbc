"""Measures 16 concurrent requests through quire against transformers' `generate`, same model, one process.

    python benchmarks/vs_transformers.py [--model FOLDER] [--runs 3] [--threads N]

The same prompts (64 tokens, 128 new, greedy, going on after the end of the text) are given to each engine in turn, and
again, so that a slow moment of the machine meets all; medians are printed and appended to benchmarks/ledger/cpu.jsonl.
Exits with 1 if quire is not at least three times as fast as transformers one by one.
"""

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
import transformers
from startup import commit

import quire
from quire.checkpoint.names import resolve
from quire.platforms.host import look

LEDGER = Path(__file__).parent / "ledger" / "cpu.jsonl"
REQUESTS, PROMPT_TOKENS, NEW_TOKENS = 16, 64, 128
PROMISED = 3.0
OURS, THEIRS, BATCHED = "quire, 16 at once", "transformers, one by one", "transformers, one batch"

Prompts = list[list[int]]
Engine = Callable[[Prompts], Prompts]


def main() -> int:
    """Measure, print, record; 1 if the promise is not kept."""
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    with quire.LLM(args.model, enable_prefix_caching=False) as llm:
        engines = {OURS: ours(llm), **theirs(str(resolve(args.model, None)), getattr(torch, llm.facts.dtype))}
        prompts = draw_prompts(llm.facts.vocab_size)
        agreement(engines, prompts)
        seconds = interleaved(engines, prompts, args.runs)
        conditions = {"dtype": llm.facts.dtype, "threads": torch.get_num_threads()}
    rates = {name: REQUESTS * NEW_TOKENS / statistics.median(times) for name, times in seconds.items()}
    show(rates, conditions)
    record(rates, args, conditions)
    return 0 if rates[OURS] >= PROMISED * rates[THEIRS] else 1


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="default", help="folder or hub name of a checkpoint [the shipped model]")
    parser.add_argument("--runs", type=int, default=3, help="repetitions of each engine [3]")
    parser.add_argument("--threads", type=int, help="CPU threads of torch, for both")
    return parser.parse_args()


def draw_prompts(vocab_size: int) -> Prompts:
    """Random prompts, the same every time; low ids, which may be special, are left out."""
    rng = random.Random(0)
    return [
        [rng.randrange(min(300, vocab_size // 2), vocab_size) for _ in range(PROMPT_TOKENS)] for _ in range(REQUESTS)
    ]


def ours(llm: quire.LLM) -> Engine:
    """All prompts at once."""
    params = quire.SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)

    def generate(prompts: Prompts) -> Prompts:
        outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
        return [output.outputs[0].token_ids for output in outputs]

    return generate


def theirs(folder: str, dtype: torch.dtype) -> dict[str, Engine]:
    """transformers on the same files in the same type, one prompt after another and all in one batch."""
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    # The checkpoint's own settings may sample, and would end at the end of the text.
    model.generation_config = transformers.GenerationConfig(do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0)

    def batch(prompts: Prompts) -> Prompts:
        ids = torch.tensor(prompts)
        found = model.generate(ids, attention_mask=torch.ones_like(ids))
        return found[:, PROMPT_TOKENS:].tolist()

    return {THEIRS: lambda prompts: [batch([p])[0] for p in prompts], BATCHED: batch}


def agreement(engines: dict[str, Engine], prompts: Prompts) -> None:
    """Warm every engine, and see that each makes all tokens and that the first ones are the same."""
    found = {name: engine(prompts[:2]) for name, engine in engines.items()}
    for name, outputs in found.items():
        lengths = {len(tokens) for tokens in outputs}
        if lengths != {NEW_TOKENS}:
            raise SystemExit(f"{name} made {sorted(lengths)} tokens instead of {NEW_TOKENS}")
        if outputs[0][0] != found[OURS][0][0]:
            raise SystemExit(f"{name} begins with token {outputs[0][0]}, quire with {found[OURS][0][0]}")


def interleaved(engines: dict[str, Engine], prompts: Prompts, runs: int) -> dict[str, list[float]]:
    """Seconds of each run of each engine, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(runs):
        for name, engine in engines.items():
            start = time.perf_counter()
            engine(prompts)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def show(rates: dict[str, float], conditions: dict[str, object]) -> None:
    """Print the table."""
    print(f"{REQUESTS} requests of {PROMPT_TOKENS} + {NEW_TOKENS} tokens, {conditions}")
    for name, rate in rates.items():
        print(f"{name:<28}{rate:9.1f} tok/s{rate / rates[THEIRS]:8.2f} times transformers one by one")


def record(rates: dict[str, float], args: argparse.Namespace, conditions: dict[str, object]) -> None:
    """Append a line per engine to the ledger."""
    host = look()
    for name, rate in rates.items():
        version = quire.__version__ if name == OURS else transformers.__version__
        entry = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "machine": f"{host.cpu}, {os.cpu_count()} threads, {host.memory_bytes / 2**30:.0f} GiB",
            "engine": f"{name} ({version}, torch {torch.__version__})",
            "model": Path(args.model).name,
            "workload": f"{REQUESTS} x ({PROMPT_TOKENS} + {NEW_TOKENS}) greedy",
            **conditions,
            "metric": "output throughput",
            "value": round(rate, 1),
            "unit": "tok/s",
            "runs": args.runs,
            "command": command(args),
        }
        LEDGER.parent.mkdir(exist_ok=True)
        with LEDGER.open("a", encoding="utf-8") as ledger:
            ledger.write(json.dumps(entry) + "\n")


def command(args: argparse.Namespace) -> str:
    """What was run, without the folders of this machine."""
    words = ["python benchmarks/vs_transformers.py", f"--model {Path(args.model).name}", f"--runs {args.runs}"]
    return " ".join([*words, f"--threads {args.threads}"] if args.threads else words)


if __name__ == "__main__":
    sys.exit(main())
