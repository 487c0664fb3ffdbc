"""What is asked: sessions of one or more turns, made from a seed, the same for every server.

random      token ids at random, lengths around a mean          trace   lengths and times from a JSONL file
prefix      groups of prompts that begin alike                  multiturn   conversations that grow
structured  chats whose answers must follow a JSON schema
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from quire.base.errors import ConfigError

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
FIRST_TOKEN = 256
"""Lower ids are special tokens in many vocabularies."""
TRACE_BLOCK = 512
"""Tokens that one entry of a trace's `hash_ids` stands for."""

WORDS = ("river", "stone", "winter", "garden", "letter", "machine", "window", "silver", "market", "engine", "forest")

SCHEMAS: tuple[dict[str, Any], ...] = (
    {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}, "member": {"type": "boolean"}},
    {"city": {"type": "string", "maxLength": 20}, "temperature": {"type": "number"}, "unit": {"enum": ["C", "F"]}},
    {"items": {"type": "array", "items": {"type": "string", "maxLength": 12}, "minItems": 1, "maxItems": 3}},
)


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for.

    Attributes:
        kind: random, trace, prefix, multiturn or structured.
        requests: sessions in all.
        input_len: tokens (or words, in chats) of a prompt's own part, on average.
        output_len: tokens to generate, on average.
        range_ratio: lengths are even between (1 - ratio) and (1 + ratio) times the mean.
        prefix_len: tokens that a group's prompts share.
        groups: of prompts that share a prefix.
        turns: of a conversation.
        pause_s: seconds between an answer and the next turn.
        vocab_size: token ids are below it.
        ignore_eos: generate exactly so many tokens.
        temperature: of sampling.
        trace: file with lines {"timestamp": ms, "input_length": n, "output_length": n, "hash_ids": [...]}.
        extra: further fields of every body.
    """

    kind: str
    requests: int
    input_len: int
    output_len: int
    range_ratio: float = 0.0
    prefix_len: int = 0
    groups: int = 1
    turns: int = 1
    pause_s: float = 0.0
    vocab_size: int = 4096
    ignore_eos: bool = True
    temperature: float = 0.0
    trace: str | None = None
    seed: int = 0
    extra: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Session:
    """Turns that follow each other.

    Attributes:
        path: of the endpoint.
        bodies: one per turn; in a conversation without `messages`.
        words: what the user says in each turn of a conversation; empty for completions.
        due: seconds from the start, where the traffic itself says when; else None.
    """

    path: str
    bodies: tuple[dict[str, Any], ...]
    words: tuple[str, ...] = ()
    due: float | None = None


def sessions(traffic: Traffic) -> list[Session]:
    """All sessions of `traffic`. Raises ConfigError for an unknown kind or a trace that cannot be read."""
    if traffic.kind not in KINDS:
        raise ConfigError(f"unknown traffic {traffic.kind!r}; known: {', '.join(KINDS)}")
    return KINDS[traffic.kind](traffic, random.Random(f"{traffic.kind}-{traffic.seed}"))


def _random(traffic: Traffic, rng: random.Random) -> list[Session]:
    return [_completion(traffic, rng, []) for _ in range(traffic.requests)]


def _prefix(traffic: Traffic, rng: random.Random) -> list[Session]:
    heads = [_ids(rng, traffic.prefix_len, traffic.vocab_size) for _ in range(traffic.groups)]
    return [_completion(traffic, rng, heads[number % traffic.groups]) for number in range(traffic.requests)]


def _multiturn(traffic: Traffic, rng: random.Random) -> list[Session]:
    heads = [_text(rng, traffic.prefix_len) for _ in range(traffic.groups)]
    found = []
    for number in range(traffic.requests):
        says = [_text(rng, _length(rng, traffic.input_len, traffic.range_ratio)) for _ in range(traffic.turns)]
        head = heads[number % traffic.groups]
        bodies = tuple(_chat(traffic, rng) for _ in says)
        found.append(Session(CHAT, bodies, (f"{head} {says[0]}".strip(), *says[1:])))
    return found


def _structured(traffic: Traffic, rng: random.Random) -> list[Session]:
    found = []
    for number in range(traffic.requests):
        wanted = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema(number)}}}
        says = _text(rng, _length(rng, traffic.input_len, traffic.range_ratio))
        found.append(Session(CHAT, ({**_chat(traffic, rng), **wanted},), (says,)))
    return found


def schema(number: int) -> dict[str, Any]:
    """The schema of a structured request."""
    properties = SCHEMAS[number % len(SCHEMAS)]
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


class Entry(msgspec.Struct):
    """A line of a trace."""

    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int] = []


def _trace(traffic: Traffic, rng: random.Random) -> list[Session]:
    path = Path(traffic.trace or "")
    try:
        lines = path.read_bytes().splitlines()
        entries = [msgspec.json.decode(line, type=Entry) for line in lines if line.strip()][: traffic.requests]
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"--trace-file {path}: {error}; give a file with one JSON object per line") from None
    found = []
    for entry in entries:
        ids: list[int] = []
        for block in entry.hash_ids:
            ids += _ids(random.Random(f"block-{block}"), TRACE_BLOCK, traffic.vocab_size)
        ids = ids[: entry.input_length]
        ids += _ids(rng, entry.input_length - len(ids), traffic.vocab_size)
        body = {"prompt": ids, **_sampling(traffic, max(1, entry.output_length))}
        found.append(Session(COMPLETIONS, (body,), due=entry.timestamp / 1000))
    return found


KINDS: dict[str, Callable[[Traffic, random.Random], list[Session]]] = {
    "random": _random,
    "prefix": _prefix,
    "multiturn": _multiturn,
    "structured": _structured,
    "trace": _trace,
}


def _completion(traffic: Traffic, rng: random.Random, head: list[int]) -> Session:
    own = _ids(rng, _length(rng, traffic.input_len, traffic.range_ratio), traffic.vocab_size)
    output = _length(rng, traffic.output_len, traffic.range_ratio)
    return Session(COMPLETIONS, ({"prompt": head + own, **_sampling(traffic, output)},))


def _chat(traffic: Traffic, rng: random.Random) -> dict[str, Any]:
    return _sampling(traffic, _length(rng, traffic.output_len, traffic.range_ratio))


def _sampling(traffic: Traffic, output: int) -> dict[str, Any]:
    eos = {"ignore_eos": True} if traffic.ignore_eos else {}
    return {
        "max_tokens": output,
        "temperature": traffic.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
        **eos,
        **traffic.extra,
    }


def _length(rng: random.Random, mean: int, ratio: float) -> int:
    return max(1, rng.randint(round(mean * (1 - ratio)), round(mean * (1 + ratio))))


def _ids(rng: random.Random, count: int, vocab_size: int) -> list[int]:
    first = FIRST_TOKEN if vocab_size > 2 * FIRST_TOKEN else 0
    return [rng.randrange(first, vocab_size) for _ in range(count)]


def _text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))
