"""How a token becomes bytes or text: what the decoder of a tokenizer does, in a form that can run token by token.

Follows the decoders of the `tokenizers` library (ByteLevel, Metaspace, and the Llama chain Replace, ByteFallback, Fuse,
Strip). Decoders with other rules are left to the library itself, kind "window". Called by `Tokenizer`.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

import tokenizers

Kind = Literal["bytes", "fallback", "metaspace", "window"]
Piece = str | bytes
"""A token's part of the text: bytes still have to be decoded together with their neighbours."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class DecoderRules:
    """What decoding does.

    Attributes:
        kind: bytes (ByteLevel), fallback (text with byte tokens), metaspace, or window (ask the library).
        replace: texts replaced in each token, in order.
        byte_tokens: whether `<0xE4>` stands for a byte.
        strip: how many leading spaces of the whole text are dropped.
        clean_first: whether the first token loses its word marks altogether.
    """

    kind: Kind
    replace: tuple[tuple[str, str], ...] = ()
    byte_tokens: bool = False
    strip: int = 0
    clean_first: bool = False

    def piece(self, token: str, *, first: bool = False) -> Piece:
        """The part of the text that `token` stands for."""
        if self.kind == "bytes":
            return _level_bytes(token)
        match = _BYTE_TOKEN.fullmatch(token) if self.byte_tokens else None
        if match:
            return bytes([int(match[1], 16)])
        for old, new in self.replace:
            token = token.replace(old, "" if first and self.clean_first else new)
        return token


def rules_of(tokenizer: tokenizers.Tokenizer) -> DecoderRules:
    """The rules of a tokenizer's decoder; kind "window" where they are not known here."""
    if tokenizer.decoder is None:
        return DecoderRules("window")
    state: dict[str, Any] = json.loads(tokenizer.decoder.__getstate__())
    if state["type"] == "ByteLevel":
        return DecoderRules("bytes")
    if state["type"] == "Metaspace":
        first = state.get("prepend_scheme", "always") != "never"
        return DecoderRules("metaspace", replace=((state["replacement"], " "),), clean_first=first)
    if state["type"] == "Sequence":
        return _chain(state["decoders"])
    return DecoderRules("window")


def _chain(steps: list[dict[str, Any]]) -> DecoderRules:
    """A Sequence: ByteLevel alone, or Replace*, ByteFallback?, Fuse and Strip? in that order."""
    kinds = [step["type"] for step in steps]
    if set(kinds) <= {"ByteLevel", "Fuse"} and kinds[:1] == ["ByteLevel"]:
        return DecoderRules("bytes")
    count = kinds.count("Replace")
    rest = kinds[count:]
    replace = [(step["pattern"].get("String"), step["content"]) for step in steps[:count] if step["type"] == "Replace"]
    strip = steps[-1] if kinds[-1:] == ["Strip"] else None
    plain = [kind for kind in rest if kind != "Strip"]
    understood = (
        len(replace) == count
        and all(isinstance(old, str) for old, _ in replace)
        and plain in (["ByteFallback", "Fuse"], ["Fuse"], ["ByteFallback"])
        and (strip is None or (strip["content"] == " " and strip["stop"] == 0 and rest[-2:] == ["Fuse", "Strip"]))
        and rest.count("Strip") == (strip is not None)
    )
    if not understood:
        return DecoderRules("window")
    return DecoderRules(
        "fallback",
        replace=tuple((str(old), new) for old, new in replace),
        byte_tokens="ByteFallback" in plain,
        strip=strip["start"] if strip else 0,
    )


def _byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in byte-level vocabularies (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_ALPHABET = _byte_alphabet()


def _level_bytes(token: str) -> bytes:
    """The bytes of a byte-level token; a token outside the alphabet (an added one) is its own text."""
    try:
        return bytes(_ALPHABET[char] for char in token)
    except KeyError:
        return token.encode()
