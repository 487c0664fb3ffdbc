"""`quire run "prompt"`: streams a model's answer to standard output, with one line of figures on standard error."""

import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TextIO

from quire.base.errors import ConfigError, RequestError
from quire.cli import flags
from quire.cli.local import Make, Message, TextModel, add_sampling, completion, make_llm, sampling_params
from quire.cli.parser import Parser
from quire.messages.outputs import RequestOutput
from quire.messages.params import SamplingParams

HINTS = """
How to go on:
  quire chat                       talk with it
  quire serve                      an OpenAI-compatible server on http://127.0.0.1:8000/v1
  quire run --model NAME "..."     another model: a folder, or a name on the Hugging Face hub
  quire doctor                     what this machine can do"""


@dataclass(slots=True)
class Streams:
    """Where text comes from and goes to."""

    stdin: TextIO = field(default_factory=lambda: sys.stdin)
    stdout: TextIO = field(default_factory=lambda: sys.stdout)
    stderr: TextIO = field(default_factory=lambda: sys.stderr)


@dataclass(slots=True)
class AnswerStats:
    """What an answer cost: tokens, and seconds since it was asked for."""

    tokens: int = 0
    first_s: float = 0.0
    total_s: float = 0.0

    def __str__(self) -> str:
        rate = self.tokens / self.total_s if self.total_s else 0.0
        return (
            f"{self.tokens} tokens in {self.total_s:.2f} s, {rate:.1f} tokens/s, the first after {self.first_s:.2f} s"
        )


def add_arguments(parser: Parser) -> None:
    """Add PROMPT, the flags of sampling and the engine's settings."""
    parser.usage = "quire run [PROMPT | -] [FLAGS]"
    parser.add_argument("prompt", nargs="?", default="-", metavar="PROMPT", help="the prompt; - reads standard input")
    parser.add_argument("--raw", action="store_true", help="continue the prompt as it is, without a chat template")
    parser.add_argument("--hints", action="store_true", help="say how to go on, as on a terminal")
    add_sampling(parser, max_tokens=256)
    flags.add_settings(parser)


def run(args: Namespace, make: Make = make_llm, streams: Streams | None = None) -> int:
    """Print the answer as it comes. `make` and `streams` stand in for the engine and the terminal in tests."""
    config, _ = flags.load(args, quiet=True)
    streams = streams or Streams()
    prompt = _prompt(args.prompt, streams.stdin)
    if args.raw and args.system is not None:
        raise ConfigError("--system needs a chat template; leave out --raw")
    with closing(make(config.engine)) as model:
        params = sampling_params(args, model.get_default_sampling_params())
        outputs = model.stream(prompt, params) if args.raw else answer(model, prompt, args.system, params)
        figures = show(outputs, streams.stdout)
    print(f"[{figures}]", file=streams.stderr)
    if args.hints or (streams.stdout.isatty() and streams.stderr.isatty()):
        print(HINTS, file=streams.stderr)
    return 0


def answer(model: TextModel, prompt: str, system: str | None, params: SamplingParams) -> Iterator[RequestOutput]:
    """The model's answer to `prompt` through its chat template, or its continuation of `prompt` if it has none."""
    messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": prompt})
    try:
        return model.stream_chat(messages, params)
    except RequestError as error:
        if error.code != "no_chat_template" or system is not None:
            raise
        return model.stream(prompt, params)


def show(outputs: Iterator[RequestOutput], out: TextIO) -> AnswerStats:
    """Write the text of `outputs` as it comes, and a line end. Returns what it cost."""
    figures = AnswerStats()
    started = time.perf_counter()
    for output in outputs:
        news = completion(output)
        if not figures.tokens and news.token_ids:
            figures.first_s = time.perf_counter() - started
        figures.tokens += len(news.token_ids)
        out.write(news.text)
        out.flush()
    figures.total_s = time.perf_counter() - started
    print(file=out)
    return figures


def _prompt(written: str, stdin: TextIO) -> str:
    if written != "-":
        return written
    if stdin.isatty():
        raise ConfigError('no prompt; write quire run "Once upon a time", or pipe a text into it')
    # The line end that `echo` adds is not part of what was asked.
    prompt = stdin.read().removesuffix("\n")
    if not prompt:
        raise ConfigError("standard input is empty; it is read because no prompt was given")
    return prompt
