"""`Detokenizer`: text of a growing list of token ids, as it becomes certain.

What it returns, joined, is exactly what decoding all ids at once gives, however the ids were cut; so nothing is ever
taken back. What could still change is held: an unfinished UTF-8 character, and a run of byte tokens (`<0xE4>`), which
the decoders of byte-fallback vocabularies judge as a whole. Constant work per token. Called by the front end, one
object per sequence.
"""

import codecs
from collections.abc import Collection, Iterator, Sequence
from typing import Protocol

from quire.tokenizer.tokenizer import Tokenizer

_MAX_WINDOW = 16
"""Tokens that an unknown decoder may hold back; a text that ends in U+FFFD for longer is taken as it is."""


class _Stream(Protocol):
    """Turns token ids that are shown into text, one by one."""

    def prime(self, backward: Iterator[int]) -> None:
        """See the shown ids of the prompt, the last one first; its text is already out."""

    def push(self, token_id: int) -> str:
        """The text that is certain now."""

    def flush(self) -> str:
        """What was held, at the end."""


class Detokenizer:
    """The text of one sequence, token by token.

    Args:
        tokenizer: whose tokens they are.
        prompt_ids: the prompt: the text continues it (a leading space stays), and is not repeated.
        skip_special_tokens: leave special tokens out.
        spaces_between_special_tokens: False joins neighbouring special tokens without the space that some decoders
            (WordPiece) put between tokens.
        shown: special tokens that stay although the others are left out.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int] = (),
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
        shown: Collection[int] = (),
    ) -> None:
        self._tokenizer = tokenizer
        # Not a copy per sequence: some vocabularies have a thousand special tokens.
        special = tokenizer.special_ids.difference(shown) if shown else tokenizer.special_ids
        self._hidden = special if skip_special_tokens else frozenset()
        self._stream: _Stream
        match tokenizer.rules.kind:
            case "bytes":
                self._stream = _Bytes(tokenizer)
            case "fallback" | "metaspace":
                self._stream = _Runs(tokenizer)
            case "window":
                self._stream = _Window(tokenizer, spaces_between_special_tokens)
        self._stream.prime(token_id for token_id in reversed(prompt_ids) if self._shown(token_id))

    def _shown(self, token_id: int) -> bool:
        return token_id not in self._hidden and self._tokenizer.known(token_id)

    def push(self, ids: Sequence[int]) -> str:
        """Take more tokens; the text that is certain now."""
        push, shown = self._stream.push, self._shown
        return "".join([push(token_id) for token_id in ids if shown(token_id)])

    def flush(self) -> str:
        """The text that was held back; nothing may be pushed afterwards."""
        return self._stream.flush()


class _Bytes:
    """Byte-level vocabularies: the text is the tokens' bytes in UTF-8, with U+FFFD for what is not."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._bytes = tokenizer.token_bytes
        self._whole = tokenizer.whole_text
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._fed = False
        self._open = True  # a character may be unfinished; before the first token it may be the prompt's

    def prime(self, backward: Iterator[int]) -> None:
        # An unfinished character at the end of the prompt (three bytes at most) is finished by the first tokens.
        tail = b""
        for token_id in backward:
            tail = self._bytes(token_id) + tail
            if len(tail) > 3 or any(byte & 0xC0 != 0x80 for byte in tail):
                break
        self._decoder.decode(tail)

    def push(self, token_id: int) -> str:
        if not self._open and (whole := self._whole(token_id)) is not None:
            return whole
        piece = self._bytes(token_id)
        if piece and not self._fed:
            self._fed = True
            if piece[0] & 0xC0 != 0x80:
                self._decoder.reset()  # the prompt's unfinished character stays unfinished: not ours to show
        text = self._decoder.decode(piece)
        self._open = not self._fed or bool(self._decoder.getstate()[0])
        return text

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True) if self._fed else ""


class _Runs:
    """Vocabularies of text with byte tokens: a run of byte tokens is text if all of it is valid, else U+FFFD each."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._run = bytearray()
        self._fed_bytes = False
        self._strip = tokenizer.rules.strip
        self._first = True

    def prime(self, backward: Iterator[int]) -> None:
        run = b""
        for token_id in backward:
            self._first = False
            piece = self._tokenizer.piece(token_id)
            if piece:
                self._strip = 0
            if isinstance(piece, str) and (piece or run):
                break
            run = (piece if isinstance(piece, bytes) else b"") + run
        self._run += _unfinished(run)

    def push(self, token_id: int) -> str:
        piece = self._tokenizer.piece(token_id)
        if isinstance(piece, bytes):
            self._run += piece
            self._first, self._fed_bytes = False, True
            return ""
        if self._first:
            self._first = False
            piece = self._tokenizer.first_piece(token_id)
        return self._close() + self._without_start(piece)

    def flush(self) -> str:
        return self._close()

    def _close(self) -> str:
        if not self._run:
            return ""
        run, fed = bytes(self._run), self._fed_bytes
        self._run.clear()
        self._fed_bytes = False
        if not fed:
            return ""  # only the prompt's unfinished character: not ours to show
        try:
            return self._without_start(run.decode())
        except UnicodeDecodeError:
            return self._without_start("\ufffd" * len(run))

    def _without_start(self, text: str) -> str:
        while self._strip and text:
            if text[0] != " ":
                self._strip = 0
                break
            text = text[1:]
            self._strip -= 1
        return text


class _Window:
    """Decoders known only to the library: decode the last token together with the new one, return the difference."""

    def __init__(self, tokenizer: Tokenizer, spaces_between_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._joined = frozenset() if spaces_between_special_tokens else tokenizer.special_ids
        self._window: list[int] = []
        self._shown = ""

    def prime(self, backward: Iterator[int]) -> None:
        for token_id in backward:
            self._restart(token_id)
            break

    def _restart(self, token_id: int) -> None:
        self._window = [token_id]
        self._shown = self._decode()

    def _decode(self) -> str:
        return self._tokenizer.decode(self._window, skip_special_tokens=False)

    def push(self, token_id: int) -> str:
        joins = token_id in self._joined and self._window[-1:] and self._window[-1] in self._joined
        self._window.append(token_id)
        text = self._decode()
        if text.endswith("\ufffd") and len(self._window) <= _MAX_WINDOW:
            return ""
        new = (self._tokenizer.token(token_id) or "") if joins else text[len(self._shown) :]
        self._restart(token_id)
        return new

    def flush(self) -> str:
        return self._decode()[len(self._shown) :]


def _unfinished(run: bytes) -> bytes:
    """The bytes of an unfinished character at the end of valid UTF-8; nothing if it is not valid."""
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    try:
        decoder.decode(run)
    except UnicodeDecodeError:
        return b""
    return decoder.getstate()[0]
