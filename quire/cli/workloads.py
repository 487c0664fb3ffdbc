"""The workloads of `quire bench`: requests as token ids, made from a fixed seed, the same for every engine measured.

Each is drawn from `random.Random(f"{name}-{seed}")`: a shared head if there is one, then per request the prompt's
length (if it varies), its tokens, and the output's length (if it varies). The order of drawing is part of the rule.
"""

import random
from dataclasses import dataclass

from quire.base.errors import ConfigError

FIRST_TOKEN = 1000
VOCABULARY = 100_000


@dataclass(frozen=True, slots=True)
class Shape:
    """How many requests, and from how few to how many tokens; `head` tokens begin every prompt alike."""

    requests: int
    prompt: tuple[int, int]
    output: tuple[int, int]
    head: int = 0


SHAPES = {
    "decode-1": Shape(1, (128, 128), (256, 256)),
    "decode-64": Shape(64, (1024, 1024), (256, 256)),
    "prefill": Shape(64, (2048, 2048), (1, 1)),
    "long": Shape(8, (32_000, 32_000), (128, 128)),
    "prefix": Shape(256, (64, 64), (64, 64), head=2048),
    "mixed": Shape(512, (100, 1024), (100, 1024)),
}


@dataclass(frozen=True, slots=True)
class Work:
    """One request: its prompt, and how many tokens it must generate."""

    prompt: list[int]
    output_tokens: int


def workload(name: str, seed: int | str = 0, *, scale: float = 1.0, vocabulary: int = VOCABULARY) -> list[Work]:
    """The requests of the workload `name`.

    Args:
        seed: another seed gives other tokens of the same shape.
        scale: multiplies the number of requests and every length, each at least 1.
        vocabulary: token ids are below it; below 100,000 the tokens are other ones than those of the full rule.

    Raises ConfigError for an unknown name or a scale that is not above 0.
    """
    if name not in SHAPES:
        raise ConfigError(f"unknown workload {name!r}; known: {', '.join(SHAPES)}")
    if not 0 < scale <= 1:
        raise ConfigError(f"scale must be above 0 and at most 1, not {scale:g}")
    shape = SHAPES[name]
    rng = random.Random(f"{name}-{seed}")
    head = _tokens(rng, _scaled(shape.head, scale), vocabulary) if shape.head else []
    return [_work(rng, shape, head, scale, vocabulary) for _ in range(_scaled(shape.requests, scale))]


def _work(rng: random.Random, shape: Shape, head: list[int], scale: float, vocabulary: int) -> Work:
    own = _tokens(rng, _scaled(_length(rng, shape.prompt), scale), vocabulary)
    return Work(head + own, _scaled(_length(rng, shape.output), scale))


def _length(rng: random.Random, bounds: tuple[int, int]) -> int:
    least, most = bounds
    return least if least == most else rng.randint(least, most)


def _tokens(rng: random.Random, count: int, vocabulary: int) -> list[int]:
    # Low ids are special tokens in most vocabularies; a tiny vocabulary has to use all it has.
    first = FIRST_TOKEN if vocabulary > 2 * FIRST_TOKEN else 0
    return [rng.randrange(first, vocabulary) for _ in range(count)]


def _scaled(count: int, scale: float) -> int:
    return max(1, round(count * scale))
