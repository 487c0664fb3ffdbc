"""What samples mean: throughput, percentiles of latencies, goodput. Field names are vLLM's, times in milliseconds."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from quire.base.errors import ConfigError
from quire.cli.bench import percentile
from quire.cli.load.client import Sample
from quire.cli.load.traffic import schema

METRICS = ("ttft", "tpot", "itl", "e2el")
MS = 1000.0


def ttft(sample: Sample) -> float:
    """Time to the first token, ms."""
    return (sample.stamps[0] - sample.due) * MS


def tpot(sample: Sample) -> float:
    """Time per output token after the first, ms."""
    return (sample.stamps[-1] - sample.stamps[0]) * MS / max(1, sample.output_tokens - 1)


def gaps(sample: Sample) -> list[float]:
    """Times between pieces of text, ms."""
    return [(b - a) * MS for a, b in zip(sample.stamps, sample.stamps[1:], strict=False)]


def e2el(sample: Sample) -> float:
    """Time to the last byte, ms."""
    return (sample.ended - sample.due) * MS


def parse_goodput(texts: Sequence[str]) -> dict[str, float]:
    """Limits in ms from texts as `ttft:500`. Raises ConfigError."""
    limits = {}
    for text in texts:
        name, _, value = text.partition(":")
        if name not in ("ttft", "tpot", "e2el") or not _is_positive(value):
            raise ConfigError(f"--goodput {text}: write ttft:MS, tpot:MS or e2el:MS, as in --goodput ttft:500 tpot:50")
        limits[name] = float(value)
    return limits


def _is_positive(text: str) -> bool:
    try:
        value = float(text)
    except ValueError:
        return False
    return math.isfinite(value) and value > 0


def report(samples: Sequence[Sample], limits: Mapping[str, float], percentiles: Sequence[float]) -> dict[str, Any]:
    """All figures of a run. Latencies are of requests that were answered in full."""
    done = [sample for sample in samples if sample.error is None and sample.stamps]
    failed = len(samples) - len(done)
    began = min((sample.due for sample in samples), default=0.0)
    seconds = max((sample.ended for sample in samples), default=0.0) - began or 1e-9
    tokens_in = sum(sample.prompt_tokens for sample in done)
    tokens_out = sum(sample.output_tokens for sample in done)
    cached = sum(sample.cached_tokens for sample in done)
    result: dict[str, Any] = {
        "duration": seconds,
        "completed": len(done),
        "failed": failed,
        "total_input_tokens": tokens_in,
        "total_output_tokens": tokens_out,
        "cached_input_tokens": cached,
        "request_throughput": len(done) / seconds,
        "output_throughput": tokens_out / seconds,
        "total_token_throughput": (tokens_in + tokens_out) / seconds,
        "chunks_per_second": sum(len(sample.stamps) for sample in done) / seconds,
        "errors": sorted({sample.error for sample in samples if sample.error is not None})[:5],
    }
    if limits:
        good = sum(all(_of(name, sample) <= limit for name, limit in limits.items()) for sample in done)
        result |= {"request_goodput": good / seconds, "goodput_share": good / max(1, len(samples))}
    values = {
        "ttft": [ttft(sample) for sample in done],
        "tpot": [tpot(sample) for sample in done if sample.output_tokens > 1],
        "itl": [gap for sample in done for gap in gaps(sample)],
        "e2el": [e2el(sample) for sample in done],
    }
    for name in METRICS:
        result |= _spread(name, values[name], percentiles)
    return result


def by_turn(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Of conversations: per turn the median time to the first token and the share of the prompt that was cached."""
    rows = []
    for turn in sorted({sample.turn for sample in samples}):
        those = [s for s in samples if s.turn == turn and s.error is None and s.stamps]
        tokens = sum(sample.prompt_tokens for sample in those)
        rows.append(
            {
                "turn": turn,
                "completed": len(those),
                "median_ttft_ms": statistics.median([ttft(sample) for sample in those]) if those else None,
                "cached_share": sum(sample.cached_tokens for sample in those) / max(1, tokens),
            }
        )
    return rows


def validity(samples: Sequence[Sample]) -> dict[str, Any]:
    """Of structured answers that were not cut: how many are JSON with exactly the keys of their schema."""
    whole = [sample for sample in samples if sample.error is None and sample.finish_reason == "stop"]
    valid = sum(_follows(sample.text, schema(sample.session)) for sample in whole)
    return {"whole_answers": len(whole), "valid_answers": valid}


def _follows(text: str, wanted: dict[str, Any]) -> bool:
    try:
        found = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return False
    return isinstance(found, dict) and set(found) == set(wanted["required"])


def _of(name: str, sample: Sample) -> float:
    return {"ttft": ttft, "tpot": tpot, "e2el": e2el}[name](sample)


def _spread(name: str, values: list[float], percentiles: Sequence[float]) -> dict[str, Any]:
    if not values:
        return {}
    result = {
        f"mean_{name}_ms": statistics.fmean(values),
        f"median_{name}_ms": statistics.median(values),
        f"std_{name}_ms": statistics.pstdev(values),
        f"max_{name}_ms": max(values),
    }
    return result | {f"p{p:g}_{name}_ms": percentile(values, p) for p in percentiles}


def lines(result: Mapping[str, Any]) -> str:
    """The figures that matter, for people."""

    def row(name: str) -> str:
        keys = [key for key in result if key.endswith(f"_{name}_ms") and key[0] in "mp"]
        return "  ".join(f"{key.removesuffix(f'_{name}_ms')} {result[key]:.2f}" for key in keys if "std" not in key)

    head = (
        f"{result['completed']} answered, {result['failed']} failed in {result['duration']:.2f} s: "
        f"{result['request_throughput']:.2f} requests/s, {result['output_throughput']:.1f} tokens/s"
    )
    goodput = [f"goodput {result['request_goodput']:.2f} requests/s"] if "request_goodput" in result else []
    table = [f"  {name:5} ms  {row(name)}" for name in METRICS if f"mean_{name}_ms" in result]
    return "\n".join([head, *goodput, *table])
