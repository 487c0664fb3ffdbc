"""`Tokenizer`: the one way from text to token ids and back, over the `tokenizers` library.

Holds no state that a call changes (the library's truncation and padding stay off), so threads share one object. Knows
nothing of requests and models; the front end, the server and the chat templates call it.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import tokenizers

from quire.base.errors import EngineError, RequestError
from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.pooling import Frame
from quire.tokenizer.files import apply_settings, named_tokens, read_settings, read_tokenizer
from quire.tokenizer.pieces import DecoderRules, Piece, rules_of

T = TypeVar("T")

LONG_TEXT_CHARS = 4_000
WORDS_KEPT = 2_048


@dataclass(frozen=True, slots=True)
class _PlainTokenizer:
    """A tokenizer without added tokens: for the start of a text, for what follows something, and what neither may say.

    The unknown token is not forbidden: it stands for characters that the vocabulary lacks, and ends nothing.
    """

    start: tokenizers.Tokenizer
    inside: tokenizers.Tokenizer
    forbidden: frozenset[int]


class Tokenizer:
    """A tokenizer of one checkpoint.

    Attributes:
        special_tokens: text by role ("bos_token", "eos_token", ...), as chat templates see them.
        special_ids: ids that `skip_special_tokens` leaves out.
        added_ids: ids of every added token, the special ones among them.
        vocab_size: one more than the highest token id; the model's embedding may have more rows.
        bos_id, eos_id, pad_id: None where the checkpoint names none.
        rules: how tokens become text.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, special_tokens: dict[str, str] | None = None) -> None:
        self._tokenizer = tokenizer
        self.special_tokens = dict(special_tokens or {})
        self._added = tokenizer.get_added_tokens_decoder()
        self.added_ids = frozenset(self._added)
        self.special_ids = frozenset(i for i, token in self._added.items() if token.special)
        self.vocab_size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        self.bos_id = self._id_of("bos_token")
        self.eos_id = self._id_of("eos_token")
        self.pad_id = self._id_of("pad_token")
        self.rules: DecoderRules = rules_of(tokenizer)
        self._pieces: dict[int, Piece] = {}
        self._known: set[int] = set()
        self._whole: dict[int, str | None] = {}

    @classmethod
    def load(cls, source: ModelFacts | str | Path) -> "Tokenizer":
        """Read the tokenizer of a checkpoint or folder. Raises CheckpointError for missing or damaged files."""
        folder = Path(source.path if isinstance(source, ModelFacts) else source)
        tokenizer, settings = read_tokenizer(folder), read_settings(folder)
        apply_settings(tokenizer, settings, folder)
        return cls(tokenizer, named_tokens(settings))

    def _id_of(self, name: str) -> int | None:
        text = self.special_tokens.get(name)
        return None if text is None else self._tokenizer.token_to_id(text)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`; literals of special tokens become these tokens.

        Raises:
            RequestError: the text holds half of a surrogate pair.
        """
        _check_text(text)
        return _guard(lambda: _encode(self._tokenizer, text, add_special_tokens))

    def encode_word(self, word: str) -> list[int]:
        """Token ids of a short text without special tokens, remembered: requests ban the same few words."""
        return list(self._word(word))

    @cached_property
    def _word(self) -> Callable[[str], tuple[int, ...]]:
        return lru_cache(WORDS_KEPT)(lambda word: tuple(self.encode(word, add_special_tokens=False)))

    def encode_within(self, text: str, most: int) -> list[int]:
        """At most so many token ids of `text`: what goes around a text stays, the text's own end is left out."""
        _check_text(text)

        def run() -> list[int]:
            around = self._tokenizer.num_special_tokens_to_add(False)
            found = self._tokenizer.encode(text, add_special_tokens=False)
            found.truncate(max(0, most - around))
            ids: list[int] = self._tokenizer.post_process(found, None, add_special_tokens=True).ids
            return ids[:most]

        return _guard(run)

    def encode_pair(self, first: str, second: str, frame: Frame | None = None) -> tuple[list[int], int]:
        """Token ids of two texts, put together as the model wants them, and where those of the second begin.

        Where the model does not tell two texts apart the second number is that of all ids. `frame` is what stands
        before both, before the first, between them and behind: see `PoolerFacts`.
        """
        _check_text(first)
        _check_text(second)
        if frame is not None:
            middle = self.encode_plain(f"{frame[1]}{first}{frame[2]}{second}", inside=True)
            ids = [*self.encode(frame[0], False), *middle, *self.encode(frame[3], False)]
            return ids, len(ids)
        found = _guard(lambda: self._tokenizer.encode(first, second))
        kinds = found.type_ids
        return found.ids, kinds.index(1) if 1 in kinds else len(kinds)

    def encode_plain(self, text: str, *, inside: bool = False) -> list[int]:
        """Token ids of `text` as mere text: no added token, whatever it spells.

        Args:
            text: text of a user.
            inside: text that follows other text or a token, so that no word mark is put before it.
        """
        _check_text(text)
        ids = self._run_plain(text, inside)
        if not self._plain.forbidden.intersection(ids):
            return ids
        # The vocabulary itself holds the token (Unigram): cut each literal after its first character.
        cuts = [start + 1 for start, _ in self.control_spans(text)]
        edges = [0, *cuts, len(text)]
        ids = [i for a, b in pairwise(edges) for i in self._run_plain(text[a:b], inside or a > 0)]
        if self._plain.forbidden.intersection(ids):
            raise RequestError("the text spells a special token that this tokenizer cannot write as text; leave it out")
        return ids

    def _run_plain(self, text: str, inside: bool) -> list[int]:
        tokenizer = self._plain.inside if inside else self._plain.start
        return _guard(lambda: _encode(tokenizer, text, False))

    @cached_property
    def _plain(self) -> "_PlainTokenizer":
        """Made at first use: it holds the vocabulary once more."""
        state = json.loads(self._tokenizer.to_str())
        unknown = state["model"].get("unk_token") or self.special_tokens.get("unk_token")
        unknown_id = state["model"].get("unk_id") if unknown is None else self._tokenizer.token_to_id(unknown)
        state["added_tokens"], state["post_processor"] = [], None
        start = inside = tokenizers.Tokenizer.from_str(json.dumps(state))
        if _never_prepend(state["pre_tokenizer"]):
            inside = tokenizers.Tokenizer.from_str(json.dumps(state))
        return _PlainTokenizer(start, inside, self.added_ids - {unknown_id})

    @cached_property
    def _markers(self) -> list[tokenizers.AddedToken]:
        """The added tokens, longest first. Runs of white space are left out: nobody leaves a role through them."""
        return sorted((t for t in self._added.values() if t.content.strip()), key=lambda t: -len(t.content))

    @cached_property
    def literal_pattern(self) -> str:
        """A regular expression, without groups, of what spells an added token."""
        return "|".join(re.escape(token.content) for token in self._markers) or "(?!)"

    @cached_property
    def control_pattern(self) -> str:
        """The same, with the white space that some of these tokens swallow."""
        # The look-behind keeps the search linear in runs of white space.
        parts = [
            (r"(?<!\s)\s*" if t.lstrip else "") + re.escape(t.content) + (r"\s*" if t.rstrip else "")
            for t in self._markers
        ]
        return "|".join(parts) or "(?!)"

    @cached_property
    def _literals(self) -> re.Pattern[str]:
        return re.compile(self.literal_pattern)

    @cached_property
    def _normalized_literals(self) -> re.Pattern[str]:
        """What spells an added token only once the text is normalized (in lower case, say)."""
        normalize = self._tokenizer.normalizer
        tokens = [t for t in self._markers if t.normalized] if normalize is not None else []
        return re.compile("|".join(re.escape(normalize.normalize_str(t.content)) for t in tokens) or "(?!)")

    def control_spans(self, text: str, *, special_only: bool = False) -> list[tuple[int, int]]:
        """Where `text` holds literals of added tokens (or only of special ones): start and end of each.

        A text that spells one only after normalization is one span as a whole.
        """
        spans = [match.span() for match in self._literals.finditer(text)]
        if special_only:
            spans = [(a, b) for a, b in spans if self._tokenizer.token_to_id(text[a:b]) in self.special_ids]
        if not spans and self._normalized_literals.pattern != "(?!)":
            normal = _guard(lambda: self._tokenizer.normalizer.normalize_str(text))
            if self._normalized_literals.search(normal) and not self._literals.search(text):
                return [(0, len(text))]
        return spans

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`; ids beyond the vocabulary have none. Raises RequestError for ids that cannot be."""
        try:
            return _guard(lambda: _decode(self._tokenizer, ids, skip_special_tokens))
        except OverflowError:
            raise RequestError("token ids must be 0 or more and below 4294967296", param="tokens") from None

    def token(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it (`Ġthe`), or None beyond the vocabulary."""
        return self._tokenizer.id_to_token(token_id) if token_id >= 0 else None

    def known(self, token_id: int) -> bool:
        """Whether the vocabulary has the id."""
        if token_id in self._known:
            return True
        if self.token(token_id) is None:
            return False
        self._known.add(token_id)
        return True

    def piece(self, token_id: int) -> Piece:
        """A token's part of a text, word marks as spaces; empty beyond the vocabulary."""
        found = self._pieces.get(token_id)
        if found is None:
            found = self._pieces[token_id] = self._make_piece(token_id)
        return found

    def first_piece(self, token_id: int) -> str:
        """A text token's part at the very start of a text, where some decoders leave word marks out."""
        piece = self.rules.piece(self.token(token_id) or "", first=True)
        return piece if isinstance(piece, str) else ""

    def _make_piece(self, token_id: int) -> Piece:
        token = self.token(token_id)
        if token is None:
            return ""
        if self.rules.kind != "window":
            return self.rules.piece(token)
        # What the library adds when the token follows another: itself, since nothing else is sure to be there.
        once, twice = (self.decode([token_id] * n, skip_special_tokens=False) for n in (1, 2))
        return twice[len(once) :]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token adds to a text; joined over a text they are the text in UTF-8."""
        piece = self.piece(token_id)
        return piece.encode() if isinstance(piece, str) else piece

    def whole_text(self, token_id: int) -> str | None:
        """The token's text if it begins and ends with a whole character; None for all others."""
        try:
            return self._whole[token_id]
        except KeyError:
            pass
        try:
            text: str | None = self.token_bytes(token_id).decode()
        except UnicodeDecodeError:
            text = None
        self._whole[token_id] = text
        return text

    def token_text(self, token_id: int) -> str:
        """The token's text for people; bytes that are not a whole character show as U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", "replace")


def _never_prepend(step: dict[str, object] | None) -> bool:
    """Turn off Metaspace's word mark at the start of a text, in place; whether there was one to turn off."""
    if step is None:
        return False
    nested = step.get("pretokenizers")
    if isinstance(nested, list):
        changed = [_never_prepend(inner) for inner in nested]
        return any(changed)
    if step["type"] != "Metaspace" or step.get("prepend_scheme") != "first":
        return False
    step["prepend_scheme"] = "never"
    return True


def _encode(tokenizer: tokenizers.Tokenizer, text: str, add_special_tokens: bool) -> list[int]:
    if len(text) < LONG_TEXT_CHARS:
        return tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
    # Of the library's ways to encode, only those for batches let other threads of Python run meanwhile.
    [encoding] = tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
    return encoding.ids


def _decode(tokenizer: tokenizers.Tokenizer, ids: Sequence[int], skip_special_tokens: bool) -> str:
    if len(ids) < LONG_TEXT_CHARS:
        return tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
    [text] = tokenizer.decode_batch([ids], skip_special_tokens=skip_special_tokens)
    return text


def _check_text(text: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RequestError(
                "the text holds half of a surrogate pair (\\ud800-\\udfff): send valid Unicode"
            ) from None


def _guard(call: Callable[[], T]) -> T:
    """Run a call of the library; a panic of its native code is an error of this call, not the end of the process."""
    try:
        return call()
    except BaseException as error:
        # The panic's class derives from BaseException and can be imported from nowhere.
        if type(error).__name__ != "PanicException":
            raise
        raise EngineError("the tokenizer failed on this text") from None
