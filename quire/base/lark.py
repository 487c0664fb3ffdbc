"""Words of grammars in Lark's syntax, as llguidance reads them: of chat formats, of answers and of structural tags."""

import json
import re
from collections.abc import Mapping

ANY = "/(?s:.*)/"
"""Any text."""
WHITE_SPACE = r"[ ]?|\n[ ]{0,32}"
"""Between tokens of JSON: a space, or a new line with its indentation. Bounded: a model cannot lose itself in it."""


def slashed(pattern: str) -> str:
    """A regular expression for between slashes: those in it are escaped that are not yet."""
    return re.sub(r"\\.|/", lambda found: r"\/" if found[0] == "/" else found[0], pattern, flags=re.DOTALL)


def expression(pattern: str) -> str:
    """What matches a regular expression. Raises ValueError, with a sentence, for one that would go on behind itself."""
    check_end(pattern)
    # Two slashes would begin a comment.
    return f"/{slashed(pattern)}/" if pattern else '""'


def check_end(pattern: str) -> None:
    """Raise ValueError for a regular expression that ends within an escape."""
    if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
        raise ValueError("the backslash at the end of the expression escapes nothing")


def spacing(spaced: bool) -> dict[str, object]:
    """The library's options for WHITE_SPACE between tokens of JSON, or for none."""
    return {"whitespace_pattern": WHITE_SPACE} if spaced else {"whitespace_flexible": False}


def json_of(schema: Mapping[str, object], *, spaced: bool = True, **options: object) -> str:
    """JSON of a schema, WHITE_SPACE or nothing between its tokens; `options` of the library's."""
    return f"%json {json.dumps({**schema, 'x-guidance': {**spacing(spaced), **options}})}"
