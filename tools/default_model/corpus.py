"""The books: read from their archive, cleaned, split into training and validation by whole books, and tokenised.

Cleaning undoes what typesetting added: hard line ends inside prose paragraphs, underscores for italics, illustration
marks and the many forms of quotation marks and dashes. Verse keeps its lines.
"""

import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)

_CHARACTERS = str.maketrans(
    {
        "“": '"',
        "”": '"',
        "‘": "'",
        "’": "'",
        "‐": "-",
        "\u2011": "-",
        "…": "...",
        "\u00a0": " ",
        "\t": " ",
        "\ufeff": "",
    }
)
_MARKS = re.compile(r"\[Illustration[^\]]*\]|\[\d+\]|~", re.IGNORECASE)  # illustrations, footnote numbers
_ITALICS = re.compile(r"(?<!\w)_+|_+(?!\w)")
_LONG_DASH = re.compile(r" ?-{2,} ?")
_SPACES = re.compile(r" {2,}")
# Words with their leading space, digits one by one, runs of punctuation, line ends: the split of current models.
_WORDS = Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Prose in these books is wrapped at 65 to 78 columns; a block whose longest line is shorter than this is verse.
_SHORTEST_PROSE_LINE = 55


@dataclass(frozen=True)
class Book:
    """One book as a list of blocks: prose paragraphs on one line each, verse and headings with their own lines."""

    name: str
    blocks: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n\n".join(self.blocks)


def read_books(archive: Path, skip: Iterable[str] = ()) -> list[Book]:
    """Return the archive's books in the order of their names, without those in `skip` (second editions)."""
    skipped = set(skip)
    books: list[Book] = []
    with tarfile.open(archive) as tar:
        for member in sorted((m for m in tar.getmembers() if m.isfile()), key=lambda m: m.name):
            name = Path(member.name).stem
            stream = tar.extractfile(member)
            if name not in skipped and stream is not None:
                books.append(Book(name, tuple(_blocks(stream.read().decode("utf-8", "replace")))))
    return books


def split_books(books: list[Book], held_out: Iterable[str]) -> tuple[list[Book], list[Book]]:
    """Split by whole books, so that no sentence of a validation book was ever seen in training."""
    names = set(held_out)
    missing = names - {book.name for book in books}
    if missing:
        raise ValueError(f"held-out books not in the archive: {sorted(missing)}")
    return [b for b in books if b.name not in names], [b for b in books if b.name in names]


def _blocks(text: str) -> Iterator[str]:
    text = text.replace("\r\n", "\n").translate(_CHARACTERS)
    text = _ITALICS.sub("", _MARKS.sub("", text))
    text = _LONG_DASH.sub("—", text)
    for raw in re.split(r"\n\s*\n", text):
        lines = [line.rstrip() for line in raw.split("\n") if line.strip()]
        if not any(character.isalnum() for line in lines for character in line):
            continue
        indented = sum(line.startswith(" ") for line in lines) > len(lines) // 2
        if max(map(len, lines)) >= _SHORTEST_PROSE_LINE and not indented:
            yield _SPACES.sub(" ", " ".join(line.strip() for line in lines))
        else:
            yield "\n".join(_SPACES.sub(" ", line.strip()) for line in lines)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE: every byte string has an encoding, so nothing a user sends is out of vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_WORDS, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[np.ndarray]:
    """Encode texts that may hold special tokens written out, in batches that bound the memory in use."""
    arrays: list[np.ndarray] = []
    for start in range(0, len(texts), 512):
        batch = tokenizer.encode_batch_fast(texts[start : start + 512], add_special_tokens=False)
        arrays.extend(np.array(encoding.ids, dtype=np.uint16) for encoding in batch)
    return arrays


def encode_books(tokenizer: Tokenizer, books: list[Book]) -> np.ndarray:
    """Return all books as one stream of tokens, each ended by the end-of-text token."""
    end = np.array([tokenizer.token_to_id(END_OF_TEXT)], dtype=np.uint16)
    parts: list[np.ndarray] = []
    for book in books:
        # Blocks carry their separator with them, so encoding them one by one equals encoding the whole book.
        parts.extend(encode(tokenizer, [block + "\n\n" for block in book.blocks]))
        parts.append(end)
    return np.concatenate(parts)
