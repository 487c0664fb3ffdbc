"""The toy model on disk, and an oracle for it that knows nothing of pages.

`oracle` says what the toy must generate, from the token ids alone; whatever the engine does differently shows.
"""

import json
from pathlib import Path

from tests.tokenizer.samples import make_byte_bpe

MODULUS = 1 << 19


def make_toy(
    folder: Path, vocab_size: int = 400, window: int | None = None, context: int = 256, recurrent: bool = False
) -> Path:
    """A checkpoint folder of the toy model, with a small real tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    make_byte_bpe(folder)
    config = {
        "model_type": "toy",
        "vocab_size": vocab_size,
        "max_position_embeddings": context,
        "dtype": "float32",
        "window": window,
        "recurrent": recurrent,
    }
    (folder / "config.json").write_text(json.dumps(config))
    # A safetensors file without tensors: the toy has no weights, but is loaded like any other model.
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder


def oracle(
    prompt: list[int], count: int, vocab_size: int = 400, window: int | None = None, recurrent: bool = False
) -> list[int]:
    """The `count` tokens that the toy generates greedily after `prompt`."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(_next(tokens, vocab_size, window, recurrent))
    return tokens[len(prompt) :]


def _next(tokens: list[int], vocab_size: int, window: int | None, recurrent: bool) -> int:
    total = _hash(tokens, 0) + (_fold(tokens) if recurrent else 0)
    if window is not None:
        total += _hash(tokens, max(0, len(tokens) - window))
    return total % MODULUS * 31 % vocab_size


def _hash(tokens: list[int], first: int) -> int:
    return sum(
        (token + 1) * (position * 7 + 3) * ((position * 40503 + 12345) % MODULUS | 1)
        for position, token in enumerate(tokens)
        if position >= first
    )


def _fold(tokens: list[int]) -> int:
    value = 0
    for token in tokens:
        value = (value * 31 + token + 1) % MODULUS
    return value
