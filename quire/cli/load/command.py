"""`quire bench serve|multiturn|prefix|structured`: load on a running server of OpenAI's API, as JSON and as a picture.

Start one with `quire serve`, then: quire bench serve --request-rate 8 --num-prompts 200
"""

import json
import sys
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from quire.base.errors import ConfigError, EngineError
from quire.cli.address import Address
from quire.cli.load import drive
from quire.cli.load.client import Sample
from quire.cli.load.plot import svg
from quire.cli.load.report import by_turn, lines, parse_goodput, report, validity
from quire.cli.load.traffic import Traffic
from quire.cli.parser import Parser
from quire.cli.remote import RemoteChat

KINDS: dict[str, dict[str, Any]] = {
    "serve": {"kind": "random"},
    "multiturn": {"kind": "multiturn", "num_prompts": 32, "input_len": 40, "output_len": 64, "max_concurrency": 8},
    "prefix": {"kind": "prefix", "prefix_len": 1024, "input_len": 64, "output_len": 32},
    "structured": {"kind": "structured", "input_len": 20, "output_len": 200, "max_concurrency": 64},
}
"""What each command asks for unless flags say otherwise."""


@dataclass(frozen=True, slots=True)
class Number:
    """A numeric flag: its type, default and line of help."""

    kind: type
    default: float | None
    help: str


NUMBERS = {
    "num-prompts": Number(int, 100, "requests (conversations for multiturn)"),
    "request-rate": Number(float, None, "requests a second, open loop; unset sends all at once"),
    "burstiness": Number(float, 1.0, "1 is a Poisson process, below comes in bursts, above is more even"),
    "max-concurrency": Number(int, None, "most requests open at a time (closed loop)"),
    "input-len": Number(int, 512, "tokens of a prompt (words in chats), beside what is shared"),
    "output-len": Number(int, 128, "tokens to generate"),
    "range-ratio": Number(float, 0.0, "lengths vary by this share of their mean"),
    "prefix-len": Number(int, 0, "tokens (words in chats) that a group of prompts shares"),
    "num-prefixes": Number(int, 1, "groups with a prefix of their own"),
    "num-turns": Number(int, 4, "turns of a conversation"),
    "pause-s": Number(float, 0.0, "seconds between an answer and the next turn"),
    "vocab-size": Number(int, 4096, "token ids of prompts are below it"),
    "temperature": Number(float, 0.0, "of sampling"),
    "seed": Number(int, 0, "of prompts and arrival times"),
    "client-processes": Number(int, 1, "processes that send"),
}


def add_arguments(parser: Parser) -> None:
    """Add all flags; the defaults depend on which of the commands it is."""
    name = parser.prog.split()[-1]
    parser.set_defaults(bench=name)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000", metavar="URL", help="of the server")
    parser.add_argument("--model", metavar="NAME", help="name on the server; unset takes the first it lists")
    parser.add_argument("--api-key", metavar="KEY", help="sent as a bearer token")
    for flag, number in NUMBERS.items():
        default = KINDS[name].get(flag.replace("-", "_"), number.default)
        shown = "" if default is None else f" [{default:g}]"
        parser.add_argument(f"--{flag}", type=number.kind, default=default, metavar="N", help=number.help + shown)
    parser.add_argument("--trace-file", metavar="FILE", help="JSON lines with timestamp, input_length, output_length")
    parser.add_argument("--extra-body", default="{}", metavar="JSON", help="further fields of every request")
    parser.add_argument("--stop-at-eos", action="store_true", help="let the model end before its length")
    parser.add_argument("--goodput", nargs="+", default=[], metavar="NAME:MS", help="count requests within limits")
    parser.add_argument("--metric-percentiles", default="50,90,95,99", metavar="LIST", help="of all latencies")
    parser.add_argument("--output-json", metavar="FILE", help="write the results there too")
    parser.add_argument("--plot", metavar="FILE", help="draw the results there, as SVG")


def run(args: Namespace) -> int:
    """Send the load, print what was found. Exit status 1 if a request failed."""
    limits = parse_goodput(args.goodput)
    percentiles = _percentiles(args.metric_percentiles)
    job = _job(args)
    bar = tqdm(total=job.traffic.requests, unit="session", disable=not sys.stderr.isatty())

    def tick() -> None:
        bar.update()

    with bar:
        samples = drive.run(job, args.client_processes, tick)
    result = _about(job) | report(samples, limits, percentiles) | _special(args.bench, samples)
    if not result["completed"]:
        raise EngineError(f"no request was answered: {'; '.join(result['errors'])}")
    print(lines(result), file=sys.stderr)
    text = json.dumps(result, indent=2)
    print(text)
    if args.output_json:
        Path(args.output_json).write_text(text + "\n", encoding="utf-8")
    if args.plot:
        Path(args.plot).write_text(svg(samples, _title(result)), encoding="utf-8")
    return 1 if result["failed"] else 0


def _job(args: Namespace) -> drive.Job:
    chosen = KINDS[args.bench]["kind"]
    _check(args)
    traffic = Traffic(
        kind="trace" if args.trace_file else chosen,
        requests=args.num_prompts,
        input_len=args.input_len,
        output_len=args.output_len,
        range_ratio=args.range_ratio,
        prefix_len=args.prefix_len,
        groups=args.num_prefixes,
        turns=args.num_turns,
        pause_s=args.pause_s,
        vocab_size=args.vocab_size,
        ignore_eos=not args.stop_at_eos and chosen != "structured",
        temperature=args.temperature,
        trace=args.trace_file,
        seed=args.seed,
        extra=_extra(args.extra_body),
    )
    model = args.model or RemoteChat(Address.of(args.base_url, "--base-url"), args.api_key, None, {}).name
    return drive.Job(
        url=args.base_url,
        model=model,
        key=args.api_key,
        traffic=traffic,
        rate=args.request_rate,
        burstiness=args.burstiness,
        concurrency=args.max_concurrency,
    )


def _check(args: Namespace) -> None:
    least = {"num_prompts": 1, "input_len": 1, "output_len": 1, "num_prefixes": 1, "num_turns": 1, "vocab_size": 2}
    least |= {"client_processes": 1, "prefix_len": 0, "pause_s": 0, "temperature": 0, "max_concurrency": 1}
    for name, bound in least.items():
        value = vars(args)[name]
        if value is not None and value < bound:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {bound}, not {value:g}")
    if not 0 <= args.range_ratio < 1:
        raise ConfigError(f"--range-ratio must be from 0 to below 1, not {args.range_ratio:g}")
    if args.trace_file and args.bench != "serve":
        raise ConfigError("--trace-file belongs to `quire bench serve`")


def _extra(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--extra-body is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError('--extra-body must be a JSON object, such as {"top_k": 20}')
    return found


def _percentiles(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = [-1.0]
    if any(not 0 <= p <= 100 for p in found):
        raise ConfigError(f"--metric-percentiles {text}: write numbers from 0 to 100, as in 50,99")
    return found


def _about(job: drive.Job) -> dict[str, Any]:
    """What was measured, so that a result explains itself."""
    return {
        "model": job.model,
        "traffic": job.traffic.kind,
        "num_prompts": job.traffic.requests,
        "request_rate": job.rate,
        "burstiness": job.burstiness,
        "max_concurrency": job.concurrency,
        "input_len": job.traffic.input_len,
        "output_len": job.traffic.output_len,
        "seed": job.traffic.seed,
    }


def _special(bench: str, samples: list[Sample]) -> dict[str, Any]:
    if bench == "multiturn":
        return {"turns": by_turn(samples)}
    return validity(samples) if bench == "structured" else {}


def _title(result: Mapping[str, Any]) -> str:
    load = f"{result['request_rate']:g} requests/s" if result["request_rate"] else "all at once"
    return f"{urlsplit(result['model']).path}: {result['traffic']}, {load}, {result['output_throughput']:.0f} tokens/s"
