"""User text that spells special tokens: it is marked before rendering, so that it cannot become those tokens after.

Marks are two short strings that no text of the request holds, put around each literal. What the template does with the
text (trimming, splitting, testing for a tag) goes on working. After rendering, the text between two tokens of the
template that holds a mark is encoded by a tokenizer that knows no added tokens; everything else as Hugging Face does.
Called by `ChatTemplate`.
"""

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

from quire.base.errors import RequestError
from quire.tokenizer.tokenizer import Tokenizer

Plain = None | bool | int | float | str | list[Any] | dict[str, Any]
"""What templates may see: JSON values."""

_MARK = re.compile(r"~(\d{1,9})\^")


def plain(value: object, path: str) -> Plain:
    """A copy of `value` in plain JSON types, so that a template sees no object with methods. Raises RequestError."""
    if value is None or type(value) in (bool, int, float, str):
        return value  # type: ignore[return-value]
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, dict):
        return {str(key): plain(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{path}[{index}]") for index, item in enumerate(value)]
    raise RequestError(f"{path} is a {type(value).__name__}; templates take JSON values only", param=path)


def strings(value: Plain) -> Iterator[str]:
    """Every text in a value, keys too, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


def unused_marks(texts: Iterable[str], count: int) -> list[str]:
    """Short strings that no text holds and that survive what templates do to text: trimming, casing, repr, JSON.

    No mark ends as it begins, so a mark beside any text is found where it was put and nowhere else.
    """
    used = {int(match[1]) for text in texts for match in _MARK.finditer(text)}
    return [f"~{number}^" for number in islice((n for n in itertools.count() if n not in used), count)]


@dataclass(frozen=True, slots=True)
class Marks:
    """The two marks of one rendering."""

    start: str
    end: str

    def put(self, text: str, spans: list[tuple[int, int]]) -> str:
        """`text` with each span between the marks."""
        edges = [0, *(edge for span in spans for edge in span), len(text)]
        parts = [text[a:b] for a, b in pairwise(edges)]
        return "".join(f"{self.start}{part}{self.end}" if n % 2 else part for n, part in enumerate(parts))


@dataclass(frozen=True, slots=True)
class Segmenter:
    """Finds, marks and encodes the user's literals for one tokenizer."""

    tokenizer: Tokenizer

    def spells(self, value: Plain) -> bool:
        """Whether any text in a value holds a literal of an added token, alone or where two parts of it meet."""
        return any(self.tokenizer.control_spans(text) for text in strings(value)) or any(
            self._meets(parts) for parts in _part_lists(value)
        )

    def _meets(self, texts: list[str]) -> bool:
        """Whether a literal arises when a template writes texts one after the other, as they are or trimmed."""
        return any(
            start < edge < end
            for pieces in (texts, [text.strip() for text in texts])
            for start, end in self.tokenizer.control_spans("".join(pieces))
            for edge in _edges(pieces)
        )

    def mark(self, value: Plain, marks: Marks, special_only: bool = False) -> Plain:
        """A copy of a value with its literals marked.

        An assistant message keeps tokens that are not special (`<think>`): they are the model's own words, and
        templates look for them.
        """
        if isinstance(value, str):
            return marks.put(value, self.tokenizer.control_spans(value, special_only=special_only))
        if isinstance(value, dict):
            special_only = special_only or value.get("role") == "assistant"
            return {str(self.mark(key, marks)): self.mark(item, marks, special_only) for key, item in value.items()}
        if isinstance(value, list):
            marked = [self.mark(item, marks, special_only) for item in value]
            if self._meets(_texts(value)):
                return [_with_edge(item, marks) for item in marked]
            return marked
        return value

    def encode(self, text: str, marks: Marks) -> list[int]:
        """Token ids of a rendered text with marks in it."""
        ids: list[int] = []
        clean = ""
        for run, token in self._runs(text, marks):
            bare = run.replace(marks.start, "").replace(marks.end, "")
            if len(bare) == len(run):
                clean += run + token
                continue
            if clean:
                ids += self.tokenizer.encode(clean, add_special_tokens=False)
            ids += self.tokenizer.encode_plain(bare, inside=bool(clean))
            clean = token
        return ids + (self.tokenizer.encode(clean, add_special_tokens=False) if clean else [])

    def _runs(self, text: str, marks: Marks) -> Iterator[tuple[str, str]]:
        """The text between the template's own tokens, each with the token that follows it ("" at the end).

        A literal with one mark lost (a template that cuts texts may do that) is still the user's.
        """
        literal = self.tokenizer.literal_pattern
        start, end = re.escape(marks.start), re.escape(marks.end)
        users = f"{start}(?:{literal})(?:{end})?|(?:{literal}){end}"
        first = 0
        for match in re.finditer(f"{users}|({self.tokenizer.control_pattern})", text):
            if match[1] is not None:
                yield text[first : match.start()], match[1]
                first = match.end()
        yield text[first:], ""


def _part_lists(value: Plain) -> Iterator[list[str]]:
    """The texts of every list of text parts in a value."""
    if isinstance(value, dict):
        for item in value.values():
            yield from _part_lists(item)
    elif isinstance(value, list):
        texts = _texts(value)
        if len(texts) > 1:
            yield texts
        for item in value:
            yield from _part_lists(item)


def _texts(parts: list[Any]) -> list[str]:
    return [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]


def _edges(texts: list[str]) -> list[int]:
    """Where each text begins when they are joined."""
    edges, length = [], 0
    for text in texts:
        edges.append(length)
        length += len(text)
    return edges


def _with_edge(part: Plain, marks: Marks) -> Plain:
    """A text part that cannot join the one before it."""
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return {**part, "text": marks.start + marks.end + part["text"]}
    return part
