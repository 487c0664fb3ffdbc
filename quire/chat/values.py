"""`Values`: one JSON value, or one Python literal, found piece by piece and written as JSON.

An explicit stack, one look at each character, nothing evaluated: what a model writes is input from outside. What it
makes does not depend on how the text is cut. Called by `Reader` for the arguments of tool calls.
"""

import json
import re

MAX_DEPTH = 64
MAX_WORD = 400
"""Longest number."""

_WORD = re.compile(r"[A-Za-z0-9+.\-]+")
_JSON_WORD = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null")
_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}
_RUN = re.compile(r"[^\"'\\\x00-\x1f]+")
_HEX = frozenset("0123456789abcdefABCDEF")
_SPACE = re.compile(r"[ \t\r\n]+")


class Values:
    """Reads one value.

    Args:
        python: take Python's spelling (single quotes, True, False, None) besides JSON's.

    Attributes:
        out: pieces of JSON made so far; the reader may take them away.
        done: the value is complete.
        broken: the text is no value; what was consumed is what fitted.
    """

    def __init__(self, *, python: bool = False) -> None:
        self.out: list[str] = []
        self.done = False
        self.broken = False
        self._python = python
        self._stack: list[str] = []
        self._expect = "value"
        self._quote = ""
        self._escape = ""
        self._is_key = False
        self._word = ""

    def push(self, text: str) -> int:
        """Take more text; how many characters of it belong to the value."""
        pos = 0
        while pos < len(text) and not self.done and not self.broken:
            if self._quote:
                pos = self._in_string(text, pos)
            elif self._word:
                pos = self._in_word(text, pos)
            else:
                pos = self._between(text, pos)
        return pos

    def finish(self) -> None:
        """No more text comes: a number or word ends here."""
        if self._word:
            self._end_word()
        self.broken = self.broken or not self.done

    def _between(self, text: str, pos: int) -> int:
        if self._stack and (space := _SPACE.match(text, pos)):
            self.out.append(space[0])
            return space.end()
        char = text[pos]
        took = False
        match self._expect:
            case "value":
                took = self._value(char)
            case "value or end":
                took = self._close(char, "]") or self._value(char)
            case "key":
                took = self._key(char)
            case "key or end":
                took = self._close(char, "}") or self._key(char)
            case "colon":
                took = self._mark(char, ":", "value")
            case "next":
                end, after = ("}", "key") if self._stack[-1] == "{" else ("]", "value")
                took = self._close(char, end) or self._mark(char, ",", after)
        if not took and not self._word:
            self.broken = True
        return pos + 1 if took else pos

    def _value(self, char: str) -> bool:
        if char in "{[":
            return self._open(char)
        if self._starts_string(char):
            return True
        if _WORD.match(char):
            self._word = char
            return True
        return False

    def _open(self, char: str) -> bool:
        if len(self._stack) >= MAX_DEPTH:
            return False
        self._stack.append(char)
        self._expect = "key or end" if char == "{" else "value or end"
        self.out.append(char)
        return True

    def _close(self, char: str, end: str) -> bool:
        if char != end:
            return False
        self._stack.pop()
        self.out.append(char)
        self._end_value()
        return True

    def _mark(self, char: str, mark: str, expect: str) -> bool:
        if char != mark:
            return False
        self.out.append(char)
        self._expect = expect
        return True

    def _key(self, char: str) -> bool:
        self._is_key = self._starts_string(char)
        return self._is_key

    def _starts_string(self, char: str) -> bool:
        if char == '"' or (self._python and char == "'"):
            self._quote = char
            self.out.append('"')
            return True
        return False

    def _end_value(self) -> None:
        self._expect = "next"
        self.done = not self._stack

    def _in_string(self, text: str, pos: int) -> int:
        if self._escape:
            self._in_escape(text[pos])
            return pos if self.broken else pos + 1
        if run := _RUN.match(text, pos):
            self.out.append(run[0])
            return run.end()
        char = text[pos]
        if char == self._quote:
            self._end_string()
        elif char == "\\":
            self._escape = char
        elif char == '"':
            self.out.append('\\"')
        elif char == "'":
            self.out.append(char)
        else:
            # JSON forbids bare control characters; models write line breaks all the same.
            self.out.append(json.dumps(char)[1:-1])
        return pos + 1

    def _end_string(self) -> None:
        self.out.append('"')
        self._quote = ""
        if self._is_key:
            self._is_key = False
            self._expect = "colon"
        else:
            self._end_value()

    def _in_escape(self, char: str) -> None:
        """One more character of an escape."""
        kind = self._escape[1:2]
        if kind:
            self._in_code(char, 2 if kind == "x" else 4)
        elif char == "u" or (char == "x" and self._python):
            self._escape += char
        elif char in '"\\/bfnrt':
            self._write_escape("\\" + char)
        elif char == "'":
            self._write_escape("'")
        elif self._python:
            # Python leaves what it does not know as it is.
            self._write_escape("\\\\" + json.dumps(char, ensure_ascii=False)[1:-1])
        else:
            self.broken = True

    def _in_code(self, char: str, digits: int) -> None:
        if char not in _HEX:
            self.broken = True
            return
        self._escape += char
        if len(self._escape) == 2 + digits:
            self._write_escape("\\u" + self._escape[2:].rjust(4, "0"))

    def _write_escape(self, written: str) -> None:
        self.out.append(written)
        self._escape = ""

    def _in_word(self, text: str, pos: int) -> int:
        if more := _WORD.match(text, pos, pos + MAX_WORD + 1 - len(self._word)):
            self._word += more[0]
            if len(self._word) > MAX_WORD:
                self.broken = True
            return more.end()
        self._end_word()
        return pos

    def _end_word(self) -> None:
        word = _PYTHON_WORDS.get(self._word, self._word) if self._python else self._word
        self._word = ""
        if _JSON_WORD.fullmatch(word):
            self.out.append(word)
            self._end_value()
        else:
            self.broken = True


def as_json(text: str, *, python: bool = False) -> str | None:
    """A whole text as JSON, if it is one value."""
    values = Values(python=python)
    end = values.push(text)
    if not values.done:
        values.finish()
    return "".join(values.out) if values.done and not text[end:].strip() else None
