"""What `--deterministic` costs, and what it changes: the same requests with it and without, in turn, in one process.

    python benchmarks/deterministic.py [--model default] [--dtype bfloat16] [--rows 32] [--prompt 256] [--ledger FILE]

Tokens a second of one sequence that decodes, of many, of prompts, and of answers with their prompts; medians of three
rounds. `changed` is how many answers of many, log-probabilities included, are not to the last bit what the same request
got alone.
"""

import argparse
import contextlib
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from lib import ledger, shapes

from quire import LLM, RequestOutput, SamplingParams

NEW = 64
ROUNDS = 3
PAGES = 2 << 30
"""Bytes for the pages of each engine: a share of the device would count what the other one holds."""


def speed(llm: LLM, prompts: list[list[int]], tokens: int) -> float:
    """Tokens a second: of answers, or of prompts where one token is wanted."""
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    began = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    count = sum(map(len, prompts)) if tokens == 1 else tokens * len(prompts)
    return count / (time.perf_counter() - began)


def said(output: RequestOutput) -> object:
    """An answer to the last bit."""
    answer = output.outputs[0]
    return answer.token_ids, [{i: one.logprob for i, one in entry.items()} for entry in answer.logprobs or ()]


def changed(llm: LLM, prompts: list[list[int]]) -> int:
    """How many answers company changes."""
    params = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True, logprobs=1)
    many = llm.generate(prompts, params, use_tqdm=False)
    alone = [llm.generate([prompt], params, use_tqdm=False)[0] for prompt in prompts]
    return sum(said(one) != said(other) for one, other in zip(many, alone, strict=True))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default", help="a shape of lib/shapes.py, or a checkpoint")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--ledger", type=Path)
    given = parser.parse_args()
    rng = random.Random(1)
    made: dict[str, LLM] = {}
    with contextlib.ExitStack() as stack:
        model, load_format = given.model, "auto"
        if model in shapes.MODELS:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            shapes.write(model, folder)
            model, load_format = str(folder / model), "dummy"
        for name, deterministic in (("default", False), ("deterministic", True)):
            settings = {"dtype": given.dtype, "load_format": load_format, "enable_prefix_caching": False}
            room = {
                "kv_cache_memory_bytes": PAGES,
                "max_num_seqs": given.rows,
                "max_model_len": given.prompt + 2 * NEW,
            }
            made[name] = stack.enter_context(LLM(model, deterministic=deterministic, **settings, **room))
        shape = shapes.MODELS.get(given.model)
        vocab = made["default"].get_tokenizer().vocab_size if shape is None else int(shape["vocab_size"])
        prompts = [[rng.randrange(vocab // 2) for _ in range(given.prompt)] for _ in range(given.rows)]
        short = [prompt[: 16 + i % 16] for i, prompt in enumerate(prompts)]
        rows: dict[str, Callable[[LLM], float]] = {
            "decode_1": lambda llm: speed(llm, short[:1], NEW),
            f"decode_{given.rows}": lambda llm: speed(llm, short, NEW),
            "prompts": lambda llm: speed(llm, prompts, 1),
            f"decode_{given.rows}_after_prompts": lambda llm: speed(llm, prompts, NEW),
        }
        figures: dict[str, float] = {}
        for row, measure in rows.items():
            taken: dict[str, list[float]] = {name: [] for name in made}
            for _ in range(ROUNDS):
                for name, llm in made.items():
                    taken[name].append(measure(llm))
            figures |= {f"{row}_{name}": statistics.median(each) for name, each in taken.items()}
        figures |= {f"changed_{name}": changed(llm, short) for name, llm in made.items()}
    for name, value in figures.items():
        print(f"{name:40} {value:.5g}")
    if given.ledger:
        machine = torch.cuda.get_device_name() if torch.cuda.is_available() else ledger.machine()
        line = {"commit": ledger.commit(), "machine": machine, "command": ledger.command()}
        ledger.append(given.ledger, {**line, "benchmark": "deterministic", **figures})


if __name__ == "__main__":
    main()
