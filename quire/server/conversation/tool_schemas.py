"""The schemas of tools, checked for what any reader of them trips over: unknown types, patterns and references that are
none. Linear, without compiling anything; what a schema means is judged where it is enforced.
"""

from collections.abc import Callable, Mapping
from typing import NoReturn

Refuse = Callable[[str, str], NoReturn]
"""Raises the error for a field: its path, and what is wrong with it."""

TYPES = frozenset({"string", "number", "integer", "boolean", "object", "array", "null"})

_SCHEMAS_BY_NAME = ("properties", "patternProperties", "$defs", "definitions")
_SCHEMA_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SCHEMAS = ("items", "additionalProperties", "not")


def check_schema(schema: object, path: str, refuse: Refuse) -> None:
    """Check a schema and all below it."""
    _Check(schema, refuse).schema(schema, path)


class _Check:
    def __init__(self, root: object, refuse: Refuse) -> None:
        self._root = root
        self._refuse = refuse

    def schema(self, schema: object, path: str) -> None:
        """One schema, and those in it."""
        if isinstance(schema, bool):
            return
        if not isinstance(schema, Mapping):
            self._refuse(path, "must be a JSON schema, an object")
        types = schema.get("type", [])
        for one in types if isinstance(types, list) else [types]:
            if not isinstance(one, str) or one not in TYPES:
                self._refuse(f"{path}.type", f"must be one of {', '.join(sorted(TYPES))}")
        self._words(schema, path)
        for key in _SCHEMAS_BY_NAME:
            below = schema.get(key, {})
            if not isinstance(below, Mapping):
                self._refuse(f"{path}.{key}", "must be an object")
            for name, one in below.items():
                self.schema(one, f"{path}.{key}.{name[:64]}")
        for key in _SCHEMA_LISTS:
            several = schema.get(key, [])
            if not isinstance(several, list):
                self._refuse(f"{path}.{key}", "must be a list")
            for number, one in enumerate(several):
                self.schema(one, f"{path}.{key}[{number}]")
        for key in _SCHEMAS:
            one = schema.get(key, True)
            for single in one if isinstance(one, list) else [one]:
                self.schema(single, f"{path}.{key}")

    def _words(self, schema: Mapping[str, object], path: str) -> None:
        pattern = schema.get("pattern", "")
        if not isinstance(pattern, str):
            self._refuse(f"{path}.pattern", "must be a text")
        if why := broken(pattern):
            self._refuse(f"{path}.pattern", f"is no regular expression: {why}")
        reference = schema.get("$ref", "#")
        if not isinstance(reference, str):
            self._refuse(f"{path}.$ref", "must be a text")
        if not reference.startswith("#"):
            self._refuse(f"{path}.$ref", "must begin with '#': nothing is fetched")
        if reference.startswith("#/") and not self._leads_somewhere(reference):
            self._refuse(f"{path}.$ref", "leads nowhere in the schema")

    def _leads_somewhere(self, reference: str) -> bool:
        place = self._root
        for step in reference[2:].split("/"):
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(place, list) and name.isdigit() and int(name) < len(place):
                place = place[int(name)]
            elif isinstance(place, Mapping) and name in place:
                place = place[name]
            else:
                return False
        return True


def broken(pattern: str) -> str:
    """What is wrong with the form of a regular expression in any dialect; "" if nothing is."""
    depth = 0
    in_class = repeatable = False
    position = 0
    while position < len(pattern):
        char = pattern[position]
        if char == "\\":
            if position + 1 == len(pattern):
                return "the backslash at its end escapes nothing"
            position += 1
            repeatable = True
        elif in_class:
            in_class = char != "]"
            repeatable = True
        elif char == "[":
            in_class = True
        elif char == "(":
            depth, repeatable = depth + 1, False
            position += pattern.startswith("?", position + 1)
        elif char == ")":
            depth, repeatable = depth - 1, True
            if depth < 0:
                return "a parenthesis closes that was not opened"
        elif char in "*+?":
            if not repeatable:
                return f"{char!r} repeats nothing"
            repeatable = False
            position += pattern.startswith(("?", "+"), position + 1)
        else:
            repeatable = char not in "|^"
        position += 1
    return "a bracket is not closed" if in_class else "a parenthesis is not closed" if depth else ""
