"""`quire bench throughput|latency|startup|kernels`: measures the engine in this process and writes JSON.

The names of the fields are vLLM's, so that results can be compared. Sampling is greedy and goes on after the end of the
text, so the work is the same whatever the weights are. Figures are of warm runs: loading and one request are not in it.
`startup` and `kernels` are in files of their own.
"""

import json
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from quire.base.errors import ConfigError, EngineError
from quire.cli import flags
from quire.cli.bench_kernels import add_flags, kernels
from quire.cli.bench_startup import startup
from quire.cli.local import Make, TextModel, completion, make_llm
from quire.cli.parser import Parser
from quire.cli.workloads import SHAPES, VOCABULARY, Work, workload
from quire.config.fields import Config
from quire.messages.outputs import RequestOutput
from quire.messages.params import SamplingParams
from quire.version import __version__

PERCENTILES = (10, 25, 50, 75, 90, 99)
Clock = Callable[[], float]
Results = dict[str, object]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be measured."""

    name: str
    seed: int
    scale: float
    iterations: int
    warmup: int


@dataclass(frozen=True, slots=True)
class Timed:
    """A timed batch: its wall-clock seconds and its tokens."""

    seconds: float
    prompt_tokens: int
    output_tokens: int


class Generates(Protocol):
    """The part of a model that is timed."""

    def generate(
        self, prompts: Sequence[dict[str, list[int]]], sampling_params: Sequence[SamplingParams], use_tqdm: bool
    ) -> list[RequestOutput]:
        """Complete all prompts."""
        ...


def add_arguments(parser: Parser) -> None:
    """Add the kind of measurement, the workload and the engine's settings."""
    parser.usage = (
        "quire bench {throughput,latency,startup,kernels} [MODEL] [FLAGS]\n"
        "       quire bench {serve,multiturn,prefix,structured} [FLAGS]    load on a running server"
    )
    help = "all requests at once, seconds per batch, seconds from process start to ready, or microseconds per op"
    parser.add_argument("kind", choices=("throughput", "latency", "startup", "kernels"), help=help)
    flags.add_model(parser)
    parser.add_argument("--workload", metavar="NAME", help=f"{', '.join(SHAPES)} [mixed; decode-1 for latency]")
    parser.add_argument("--workload-seed", type=int, default=0, metavar="N", help="other tokens of the same shape [0]")
    parser.add_argument(
        "--scale", type=float, default=1.0, metavar="X", help="multiplies requests and lengths, for small machines [1]"
    )
    parser.add_argument("--num-iters", type=int, default=10, metavar="N", help="batches that are timed, latency [10]")
    parser.add_argument("--num-iters-warmup", type=int, default=2, metavar="N", help="batches before, latency [2]")
    add_flags(parser)
    parser.add_argument("--output-json", metavar="FILE", help="write the results there too")
    flags.add_settings(parser)


def run(args: Namespace, make: Make = make_llm, clock: Clock = time.perf_counter) -> int:
    """Measure and print JSON. `make` and `clock` stand in for engine and time in tests."""
    config, _ = flags.load(args, quiet=True)
    plan = _plan(args)
    if args.kind == "kernels":
        results = kernels(args, config.engine)
    else:
        with closing(make(config.engine)) as model:
            results = _measure(args.kind, model, plan, clock) | _engine(args.kind, config, model)
    text = json.dumps(results, indent=2)
    print(text)
    if args.output_json:
        Path(args.output_json).write_text(text + "\n", encoding="utf-8")
    return 0


def _measure(kind: str, model: TextModel, plan: Plan, clock: Clock) -> Results:
    if kind == "startup":
        return startup(model)
    measure = throughput if kind == "throughput" else latency
    return measure(model, plan, clock) | {
        "workload": plan.name,
        "workload_seed": plan.seed,
        "scale": plan.scale,
        "vocabulary": _vocabulary(model),
    }


def throughput(model: TextModel, plan: Plan, clock: Clock) -> Results:
    """Give all requests at once and time them to the last token."""
    works = _works(model, plan, plan.seed)
    _generate(model, _works(model, plan, f"{plan.seed}-warmup")[:1])
    timed = time_works(model, works, clock, progress=sys.stderr.isatty())
    tokens = timed.prompt_tokens + timed.output_tokens
    return {
        "elapsed_time": timed.seconds,
        "num_requests": len(works),
        "total_num_tokens": tokens,
        "requests_per_second": len(works) / timed.seconds,
        "tokens_per_second": tokens / timed.seconds,
        "prompt_tokens": timed.prompt_tokens,
        "output_tokens": timed.output_tokens,
        "output_tokens_per_second": timed.output_tokens / timed.seconds,
    }


def time_works(model: Generates, works: Sequence[Work], clock: Clock, *, progress: bool = False) -> Timed:
    """Give `model` all of `works` at once, greedy and past the end of the text, and time them to the last token.

    Raises EngineError if a request did not make all of its tokens.
    """
    started = clock()
    _generate(model, works, progress=progress)
    seconds = clock() - started
    return Timed(seconds, sum(len(work.prompt) for work in works), sum(work.output_tokens for work in works))


def latency(model: TextModel, plan: Plan, clock: Clock) -> Results:
    """Time the whole batch again and again, with other tokens each time so that no prefix of a past batch helps."""
    for index in range(plan.warmup):
        _generate(model, _works(model, plan, f"{plan.seed}-warmup-{index}"))
    seconds = [
        time_works(model, _works(model, plan, plan.seed + index), clock).seconds for index in range(plan.iterations)
    ]
    return {
        "avg_latency": statistics.fmean(seconds),
        "latencies": seconds,
        "percentiles": {str(p): percentile(seconds, p) for p in PERCENTILES},
        "num_iters": plan.iterations,
        "num_iters_warmup": plan.warmup,
    }


def percentile(values: Sequence[float], p: float) -> float:
    """The `p`-th percentile, linear between the two nearest values (numpy's default)."""
    ordered = sorted(values)
    position = (len(ordered) - 1) * p / 100
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def _plan(args: Namespace) -> Plan:
    if args.num_iters < 1 or args.num_iters_warmup < 0:
        raise ConfigError("--num-iters must be at least 1, and --num-iters-warmup at least 0")
    name = args.workload or ("mixed" if args.kind == "throughput" else "decode-1")
    return Plan(name, args.workload_seed, args.scale, args.num_iters, args.num_iters_warmup)


def _works(model: TextModel, plan: Plan, seed: int | str) -> list[Work]:
    works = workload(plan.name, seed, scale=plan.scale, vocabulary=_vocabulary(model))
    longest = max(len(work.prompt) + work.output_tokens for work in works)
    limit = model.facts.max_model_len
    if longest > limit:
        raise ConfigError(
            f"the workload {plan.name} needs {longest} tokens of context and this engine has {limit}; "
            f"give --scale {plan.scale * limit / longest * 0.95:.2g}, or a model and --max-model-len with more"
        )
    return works


def _vocabulary(model: TextModel) -> int:
    return min(VOCABULARY, model.facts.vocab_size)


def _generate(model: Generates, works: Sequence[Work], *, progress: bool = False) -> None:
    prompts = [{"prompt_token_ids": work.prompt} for work in works]
    params = [
        SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=work.output_tokens, detokenize=False)
        for work in works
    ]
    outputs = model.generate(prompts, params, use_tqdm=progress)
    for work, output in zip(works, outputs, strict=True):
        tokens = len(completion(output).token_ids)
        if tokens != work.output_tokens:
            raise EngineError(f"a request gave {tokens} tokens of {work.output_tokens}; the figures would mean nothing")


def _engine(kind: str, config: Config, model: TextModel) -> Results:
    """What was measured, so that a result explains itself."""
    facts = model.facts
    return {
        "kind": kind,
        "model": config.engine.model.model,
        "load_format": config.engine.model.load_format,
        "device": facts.device,
        "dtype": facts.dtype,
        "kv_cache_dtype": facts.kv_cache_dtype,
        "max_num_seqs": facts.max_num_seqs,
        "tensor_parallel_size": config.engine.parallel.tensor_parallel_size,
        "enable_prefix_caching": config.engine.cache.enable_prefix_caching,
        "kernels": config.engine.device.kernels,
        "quire_version": __version__,
    }
