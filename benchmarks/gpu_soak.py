"""Keeps an engine full for long: more to do than pages and rows hold, the longest prompts among it, every way to draw.

    python benchmarks/gpu_soak.py [--minutes 10] [--model qwen3-0.6b] [--device cuda] [--ledger FILE] [NAME=VALUE...]

NAME=VALUE are settings of the engine. Nothing may be refused, fail or end early: an engine that is ready never runs out
of memory. Afterwards no page is held, and the device's memory is what it was when the engine became ready. Prints how
full it was; fails if pages were never short.
"""

import argparse
import asyncio
import contextlib
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lib import ledger, shapes

from quire import AsyncLLM, SamplingParams
from quire.config.sources import engine_config
from quire.messages.params import RequestOutputKind

LOOK_S = 1.0
CROWD = 1.25
"""Requests at once, as a share of the rows."""
NOISE_BYTES = 64 << 20
FULL_SHARE = 0.95
"""Of all pages, half of the time; what is left is kept back for those that run, and admits nobody."""
FULL = {"max_num_seqs": 1024, "max_model_len": 8192}
"""Of an engine: 0.6B on a GPU of 141 GB has pages for a million tokens, and so many rows want half as much again."""
DRAWS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.0, "logprobs": 5},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_p": 0.9, "top_k": 50},
    {"temperature": 1.2, "min_p": 0.05, "repetition_penalty": 1.2, "frequency_penalty": 0.5},
    {"temperature": 1.0, "presence_penalty": 0.5, "logit_bias": {17: 4.0}, "logprobs": 20},
    {"temperature": 0.9, "n": 3},
)
"""Settings of which each request has one."""


@dataclass
class Seen:
    """What has happened.

    Attributes:
        wrong: what may not be.
        full, running: each second, share of pages and sequences.
        most_bytes: of the device, taken by whomever.
    """

    ended: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    wrong: list[str] = field(default_factory=list)
    full: list[float] = field(default_factory=list)
    running: list[int] = field(default_factory=list)
    most_bytes: int = 0


def taken(device: str) -> int:
    """Bytes of the device in use; 0 where it is a CPU."""
    if device == "cpu":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return total - free


async def client(engine: AsyncLLM, number: int, until: float, seen: Seen) -> None:
    """Ask one thing after the other."""
    rng = random.Random(number)
    longest, vocab = engine.facts.max_model_len, engine.model.vocab_size
    while time.monotonic() < until:
        settings = rng.choice(DRAWS)
        answer = rng.randint(1, min(512, longest // 4))
        # A few of the longest, many of middling length, and some that ask for their prompt's log-probabilities.
        prompt = longest - answer if rng.random() < 0.05 else rng.randint(1, max(1, longest // 4))
        if prompt < 200 and rng.random() < 0.1:
            settings = settings | {"prompt_logprobs": 2}
        ids = [rng.randrange(vocab // 2) for _ in range(prompt)]
        base = {"max_tokens": answer, "ignore_eos": True, "output_kind": RequestOutputKind.DELTA}
        params = SamplingParams(**base, seed=rng.randrange(1 << 31), **settings)
        leaves = rng.random() < 0.05
        try:
            made = 0
            async with contextlib.aclosing(engine.generate(ids, params)) as outputs:
                async for output in outputs:
                    made += sum(len(one.token_ids) for one in output.outputs)
                    if leaves:
                        break
            if not leaves and made != answer * settings.get("n", 1):
                seen.wrong.append(f"{made} tokens of {answer}: {params}")
            seen.tokens += made
            seen.ended["left" if leaves else "whole"] += 1
        except Exception as error:
            seen.wrong.append(f"{type(error).__name__}: {error}"[:300])
            if engine.dead is not None:
                return


async def watch(engine: AsyncLLM, device: str, until: float, seen: Seen) -> None:
    """Note how full it is."""
    while time.monotonic() < until and engine.dead is None:
        seen.full.append(engine.stats.kv_usage)
        seen.running.append(engine.stats.running)
        seen.most_bytes = max(seen.most_bytes, taken(device))
        await asyncio.sleep(LOOK_S)


async def soak(settings: dict[str, Any], device: str, minutes: float) -> tuple[Seen, dict[str, float]]:
    """Keep an engine full; what was seen, and figures."""
    seen = Seen()
    engine = await AsyncLLM.start(engine_config(device=device, **settings))
    try:
        ready = taken(device)
        rows = int(settings["max_num_seqs"])
        began = time.monotonic()
        until = began + 60 * minutes
        watching = asyncio.create_task(watch(engine, device, until, seen))
        await asyncio.gather(*(client(engine, n, until, seen) for n in range(int(rows * CROWD))))
        took = time.monotonic() - began
        await watching
        for _ in range(50):
            if not (engine.stats.running or engine.stats.waiting or engine.stats.kv_usage):
                break
            await asyncio.sleep(0.1)
        stats = engine.stats
        if stats.running or stats.waiting or stats.kv_usage:
            seen.wrong.append(f"left over: {stats}")
        grown = taken(device) - ready
        if grown > NOISE_BYTES:
            seen.wrong.append(f"the device's memory has grown by {grown >> 20} MiB since the engine was ready")
        if statistics.median(seen.full) < FULL_SHARE:
            seen.wrong.append(f"pages were not short: {statistics.median(seen.full):.0%} of them were used")
    finally:
        await engine.close()
    return seen, {
        "requests": seen.ended.total(),
        "tokens_per_second": seen.tokens / took,
        "wrong": len(seen.wrong),
        "preemptions": stats.preemptions,
        "pages_used_median": statistics.median(seen.full),
        "pages_used_most": max(seen.full),
        "running_median": statistics.median(seen.running),
        "grown_mib": grown / 2**20,
        "most_above_ready_mib": max(0, seen.most_bytes - ready) / 2**20,
    }


def main() -> int:
    """Soak; 1 if something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--model", default="qwen3-0.6b", help="a shape of lib/shapes.py, or a checkpoint")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--ledger", type=Path)
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE")
    given = parser.parse_args()
    settings: dict[str, Any] = {**FULL, **dict(word.split("=", 1) for word in given.settings)}
    with tempfile.TemporaryDirectory() as folder:
        if given.model in shapes.MODELS:
            shapes.write(given.model, Path(folder))
            settings |= {"model": f"{folder}/{given.model}", "load_format": "dummy"}
        else:
            settings["model"] = given.model
        seen, figures = asyncio.run(soak(settings, given.device, given.minutes))
    print("\n".join([*seen.wrong[:20], str(dict(seen.ended))]), file=sys.stderr)
    for name, value in figures.items():
        print(f"{name:24} {value:.5g}")
    if given.ledger:
        line = {"commit": ledger.commit(), "machine": ledger.machine(), "command": ledger.command()}
        ledger.append(given.ledger, {**line, "benchmark": "gpu_soak", "minutes": given.minutes, **figures})
    return 1 if seen.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
