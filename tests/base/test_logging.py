"""Lines for machines, and messages that are not said for ever."""

import contextlib
import json
import logging
import os
import threading

import pytest

from quire.base import logging as quire_logging
from quire.base.logging import BURST, MOST_WAITING, WINDOW_S, Aside, JsonLines, RateLimit
from tests.waiting import HANG_S

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


def test_a_sink_that_blocks_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quire_logging, "FLUSH_S", HANG_S)
    reader, writer = os.pipe()
    with os.fdopen(reader) as sink, os.fdopen(writer, "w") as stream:
        aside = Aside(logging.StreamHandler(stream))
        logger = logging.Logger("blocked")
        logger.addHandler(aside)
        count = MOST_WAITING + 5000  # a pipe holds 64 KiB: most of this is never taken
        for number in range(count):
            logger.info("line %d %s", number, "x" * 100)
        assert aside.dropped > 1000
        taken: list[str] = []
        drain = threading.Thread(target=lambda: taken.extend(sink), daemon=True)
        drain.start()
        aside.flush()
        logger.info("the last one")
        aside.flush()
        stream.close()
        drain.join(HANG_S)
    # The sink may begin to block only when some have been dropped.
    dropped = [int(line[1:].split()[0]) for line in taken if "dropped" in line]
    assert sum("line" in line and "dropped" not in line for line in taken) + sum(dropped) == count
    assert taken[-1] == "the last one\n"


def test_a_sink_that_is_gone_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    aside = Aside(logging.StreamHandler(stream))
    aside.handle(logging.makeLogRecord({"msg": "nobody hears it"}))
    aside.flush()
    assert aside.dropped == 1
    with contextlib.suppress(BrokenPipeError):
        stream.close()
