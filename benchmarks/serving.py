"""Measures `quire serve` on a GPU over HTTP, beside what vLLM 0.24.0 reached under the same load on one H200.

    python benchmarks/serving.py [--models qwen3-0.6b,llama-8b] [--rows 256,60/s,...] [--new-prompts]
        [--api-server-count 4] [--itl-target-ms 10] [--budget-s 60] [--ledger FILE]

Streamed completions of token ids, random weights, a vocabulary of 32,000, greedy. `itl` is a row of its own: streams
run under --itl-target-ms while prompts of 30,000 tokens come. `tiny` is a model for trying this script on a CPU.

The load is the peer's to the token (`lib/peer_load.py`): prompts of 256 to 768 tokens, four processes that send, rows
in the order of their rates on one server. Its figures were reported to us; no log of theirs is here. Its rows at a rate
begin with the same prompts, so half of those at 16 requests a second and four fifths of those at 24 are in the prefix
cache. That vLLM's were in its own shows in its first tokens, which come sooner at 24 a second than at 8. How many
requests its rows had is not on record; at the moments that its generator draws, those below give the throughputs that
it reports within 0.3 % at 8, 16 and 24 a second. With --new-prompts each row
has prompts of its own, and only that at 8 a second compares. Pages for 600 such prompts take 48 GiB of an 8B model
(--pages-gib), or the cache forgets them.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import msgspec
from lib import ledger, peer_load, shapes

from quire.base.event_loop import loop_factory
from quire.cli.bench import percentile
from quire.cli.load import drive
from quire.cli.load.client import Sample
from quire.cli.load.report import report
from quire.cli.load.traffic import Traffic

NAME = "default"
VOCABULARY = 32_000
FIELDS = ("output_throughput", *(f"p{p}_{name}_ms" for name in ("ttft", "tpot", "itl") for p in (50, 99)))
ITL = "itl"
LONG_TOKENS, LONG_PROMPTS, BESIDE = 30_000, 4, 32
WARM_SEED = 100
"""Of requests that nobody times."""


@dataclass(frozen=True, slots=True)
class Load:
    """A row.

    Attributes:
        rate, concurrency: open loop, requests a second; or closed, streams at once.
        vllm: its figures, in the order of FIELDS.
    """

    requests: int
    prompt: int
    vllm: tuple[float, ...]
    rate: float | None = None
    concurrency: int | None = None
    output: int = 128


LOADS: dict[str, dict[str, Load]] = {
    "qwen3-0.6b": {
        "60/s": Load(480, 512, (7_152, 18.6, 55.1, 2.55, 3.52, 2.0, 10.7), rate=60),
        "64": Load(512, 128, (24_044, 65.6, 100, 2.20, 2.61, 2.2, 5.4), concurrency=64),
        "256": Load(1024, 128, (27_817, 179, 219, 8.07, 8.77, 7.6, 21.8), concurrency=256),
        "512": Load(2048, 128, (30_458, 313, 829, 15.4, 17.2, 14.4, 45), concurrency=512),
    },
    "llama-8b": {
        "8/s": Load(240, 512, (812, 25.4, 43.7, 5.14, 5.93, 4.9, 11.9), rate=8),
        "16/s": Load(480, 512, (1_818, 20.3, 44.3, 5.35, 6.76, 5.2, 12.6), rate=16),
        "24/s": Load(600, 512, (2_823, 19.0, 44.0, 5.35, 6.81, 5.3, 12.3), rate=24),
        "256": Load(1024, 512, (7_267, 960, 2_660, 29.3, 35.1, 13.1, 196), concurrency=256),
    },
}
WARM = Load(64, 512, (), concurrency=32, output=32)
LOADS["tiny"] = LOADS["qwen3-0.6b"]
TINY = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}


def write(name: str, parent: Path) -> Path:
    """A checkpoint of model `name` without weights, in which every token is a word."""
    folder = shapes.write("qwen3-0.6b" if name == "tiny" else name, parent)
    config = json.loads((folder / "config.json").read_text())
    config |= {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1}
    config |= {**TINY, "intermediate_size": 128} if name == "tiny" else {}
    (folder / "config.json").write_text(json.dumps(config))
    shapes.write_words(folder, VOCABULARY)
    return folder


@contextmanager
def serving(folder: Path, *flags: str) -> Iterator["Server"]:
    """A server over the checkpoint, beginning; several may begin at once."""
    words = [sys.executable, "-m", "quire.cli", "serve", "--model", str(folder), "--load-format", "dummy"]
    words += ["--port", "0", "--served-model-name", NAME, "--disable-access-log", "--max-num-seqs", "512", *flags]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Server(process)
        finally:
            process.terminate()
            process.wait(60)


class Server:
    """A server that begins."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._url = ""

    def url(self) -> str:
        """Its address, once it is ready."""
        assert self._process.stdout is not None
        while not self._url:
            line = self._process.stdout.readline()
            if not line:
                raise RuntimeError("the server did not start; its log is above")
            if "start-up" in line:
                print(line.strip(), flush=True)
            if "ready at" in line:
                self._url = line.split()[-1]
        return self._url


def row(url: str, load: Load, scale: float, seed: int) -> dict[str, float]:
    """Figures of a row."""
    asked = peer_load.PeerLoad(
        url=url,
        model=NAME,
        requests=max(peer_load.PROCESSES, round(load.requests * scale)),
        prompt=load.prompt,
        output=load.output,
        rate=load.rate,
        streams=load.concurrency,
        seed=seed,
    )
    found = report(peer_load.run(asked), {}, (50, 99))
    if found["failed"]:
        print(found["failed"], "failed:", *found["errors"], flush=True)
    found["cached_share"] = found["cached_input_tokens"] / max(1, found["total_input_tokens"])
    fields = (*FIELDS, "max_itl_ms", "chunks_per_second", "duration", "cached_share", "completed", "failed")
    return {field: found[field] for field in fields if field in found}


def job(url: str, load: Load) -> drive.Job:
    """A load as the job of `quire bench serve`."""
    traffic = Traffic(
        kind="random",
        requests=load.requests,
        input_len=load.prompt,
        output_len=load.output,
        vocab_size=VOCABULARY,
    )
    return drive.Job(url=url, model=NAME, traffic=traffic, concurrency=load.concurrency)


def long_prompts(url: str, tokens: int) -> dict[str, float]:
    """Gaps of streams while long prompts are computed, one after the other; and without."""
    streams = job(url, Load(BESIDE, 128, (), output=1500))
    prompts = job(url, Load(LONG_PROMPTS, tokens, (), concurrency=1, output=1))

    async def both() -> tuple[list[Sample], list[Sample]]:
        begins = time.perf_counter() + drive.HEAD_START_S
        jobs = (msgspec.structs.replace(streams, begins=begins), msgspec.structs.replace(prompts, begins=begins + 1))
        running, asked = await asyncio.gather(*map(drive.drive, jobs))
        return running, asked

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        running, asked = runner.run(both())
    assert not any(sample.error for sample in (*running, *asked)), {sample.error for sample in (*running, *asked)}
    from_s, to_s = min(one.due for one in asked), max(one.ended for one in asked)
    stretches = {"alone": (0.0, from_s), "beside": (from_s, to_s)}
    found = {f"p99_gap_{name}_ms": percentile(list(_gaps(running, *when)), 99) for name, when in stretches.items()}
    prompt_s = (to_s - from_s) / len(asked)
    return {**found, "long_prompt_s": prompt_s, "gaps": float(len(list(_gaps(running, from_s, to_s))))}


def _gaps(samples: Sequence[Sample], from_s: float, to_s: float) -> Iterator[float]:
    for sample in samples:
        for before, after in pairwise(sample.stamps):
            if from_s <= before and after <= to_s:
                yield 1000 * (after - before)


def measure(args: argparse.Namespace) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Model, row and figures, as long as there is time. All servers begin at once; one at a time is asked."""
    deadline = time.monotonic() + args.budget_s
    pages = ("--kv-cache-memory-bytes", str(round(args.pages_gib * (1 << 30))))
    front_ends, target = ("--api-server-count", str(args.api_server_count)), str(args.itl_target_ms)
    with ExitStack() as stack:
        folders = {
            model: write(model, Path(stack.enter_context(tempfile.TemporaryDirectory()))) for model in args.models
        }
        wanted = {model: [name for name in LOADS[model] if not args.rows or name in args.rows] for model in args.models}
        servers = {
            model: stack.enter_context(serving(folders[model], *pages, *front_ends))
            for model in wanted
            if wanted[model]
        }
        small = args.models[0]
        paced = None
        if not args.rows or ITL in args.rows:
            flags = ("--itl-target-ms", target, "--no-enable-prefix-caching")
            paced = stack.enter_context(serving(folders[small], *pages, *flags))
        urls = {model: server.url() for model, server in servers.items()}
        if paced is not None:
            yield small, f"{ITL} {target} ms", long_prompts(paced.url(), round(LONG_TOKENS * min(1.0, args.scale)))
        for model, url in urls.items():
            row(url, WARM, 1.0, WARM_SEED)
            for number, name in enumerate(wanted[model], start=1):
                if time.monotonic() < deadline:
                    yield model, name, row(url, LOADS[model][name], args.scale, number * args.new_prompts)


def main() -> int:
    """Measure, print, record."""

    def names(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", type=names, default=["qwen3-0.6b"], help="of " + ", ".join(LOADS))
    parser.add_argument("--rows", type=names, default=[], help="of those of the model, and itl; all by default")
    parser.add_argument("--api-server-count", type=int, default=4)
    parser.add_argument("--new-prompts", action="store_true", help="prompts of its own for each row")
    parser.add_argument("--itl-target-ms", type=float, default=10.0)
    parser.add_argument("--pages-gib", type=float, default=24.0, help="memory for pages, of each server")
    parser.add_argument("--budget-s", type=float, default=3600.0, help="begin no row after these seconds")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the requests, and of the long prompts")
    parser.add_argument("--ledger", type=Path)
    parser.add_argument("--commit", default=ledger.commit(), help="what is measured, where git cannot tell")
    args = parser.parse_args()
    for model, name, found in measure(args):
        load = LOADS[model].get(name)
        peer = dict(zip(FIELDS, load.vllm, strict=True)) if load else {}
        print(f"{model} {name}", flush=True)
        for field, value in found.items():
            print(f"  {field:22} {value:10,.2f}  vLLM {peer.get(field, '-')}", flush=True)
        if args.ledger:
            line = {"commit": args.commit, "model": model, "row": name, **found, "vllm": peer}
            ledger.append(args.ledger, {**line, "runs": 1, "command": ledger.command()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
