"""Lines for machines, and messages that are not said for ever."""

import json
import logging

import pytest

from quire.base.logging import BURST, WINDOW_S, JsonLines, RateLimit

pytestmark = pytest.mark.plain


def record(message: str = "lost %d", *args: object, level: int = logging.WARNING, line: int = 7) -> logging.LogRecord:
    return logging.LogRecord("quire.test", level, "file.py", line, message, args or (3,), None)


def test_a_line_of_json_whatever_is_in_the_message() -> None:
    plain = record('two\nlines "quoted" é %s', "x")
    plain.fields = {"request_id": "req_1", "status": 200}
    text = JsonLines().format(plain)
    line = json.loads(text)
    assert "\n" not in text
    assert (line["level"], line["logger"], line["request_id"]) == ("warning", "quire.test", "req_1")
    assert line["message"] == 'two\nlines "quoted" é x' and line["time"].endswith("Z")


def test_an_exception_is_part_of_the_line() -> None:
    try:
        raise ValueError("why")
    except ValueError as error:
        failed = record()
        failed.exc_info = (type(error), error, error.__traceback__)
    assert "ValueError: why" in json.loads(JsonLines().format(failed))["exception"]


def test_a_flood_from_one_place_is_cut_and_counted() -> None:
    now = [0.0]
    limit = RateLimit(lambda: now[0])
    written = [limit.filter(record()) for _ in range(BURST + 5)]
    assert written == [True] * BURST + [False] * 5
    assert limit.filter(record(line=8)) and limit.filter(record(level=logging.INFO))
    now[0] = WINDOW_S
    late = record()
    assert limit.filter(late)
    assert late.getMessage() == "lost 3 (5 more like this were left out)"
    assert "left out" not in record().getMessage()
