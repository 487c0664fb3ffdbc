"""Logging: one logger tree under `quire`, lines for people or for machines, and messages that are not said for ever.

Libraries do not configure logging; `setup` is called by the command line and by engine processes only.
"""

import atexit
import json
import logging
import queue
import sys
import threading
import time
from collections.abc import Callable
from functools import cache
from typing import TextIO

FORMAT = "%(asctime)s %(levelname)-7s %(process)d %(name)s: %(message)s"
BURST = 10
"""Warnings and errors of one place in the code that are written within WINDOW_S; the rest is counted."""
WINDOW_S = 10.0
MOST_WAITING = 10_000
"""Lines that wait for a sink that does not take them; the rest is counted and dropped."""
FLUSH_S = 1.0


class JsonLines(logging.Formatter):
    """A record as one line of JSON; `extra={"fields": {...}}` adds to it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "process": record.process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= vars(record).get("fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class RateLimit(logging.Filter):
    """Lets BURST warnings or errors of one place through in WINDOW_S, and says afterwards how many were left out.

    Args:
        clock: seconds; never goes back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._places: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether `record` is written; the first one after a window tells of those that were not."""
        if record.levelno < logging.WARNING:
            return True
        place = record.pathname, record.lineno
        began, count = self._places.get(place, (self._clock(), 0))
        if self._clock() - began >= WINDOW_S:
            if count > BURST:
                record.msg = f"{record.getMessage()} ({count - BURST} more like this were left out)"
                record.args = ()
            began, count = self._clock(), 0
        self._places[place] = began, count + 1
        return count < BURST


class Aside(logging.Handler):
    """Has lines written by a thread of its own: a terminal or pipe that blocks holds nobody up.

    Args:
        inner: whose filters, format and stream are used.

    Attributes:
        dropped: lines that were not written since the last one that was.
    """

    def __init__(self, inner: "logging.StreamHandler[TextIO]") -> None:
        super().__init__()
        self._inner = inner
        self._waiting: queue.Queue[str] = queue.Queue(MOST_WAITING)
        self.dropped = 0
        threading.Thread(target=self._write, name="log", daemon=True).start()
        atexit.register(self.flush)

    def setFormatter(self, fmt: logging.Formatter | None) -> None:  # noqa: N802 (logging's name)
        """As the inner handler's."""
        self._inner.setFormatter(fmt)

    def emit(self, record: logging.LogRecord) -> None:
        """Let the line of `record` be written, if there is room for it."""
        if not self._inner.filter(record):
            return
        try:
            self._waiting.put_nowait(self._inner.format(record))
        except queue.Full:
            self.dropped += 1
        except Exception:
            # As handlers of the standard library do: whoever logs never hears of it.
            self.handleError(record)

    def flush(self) -> None:
        """Give the sink a moment to take what waits."""
        deadline = time.monotonic() + FLUSH_S
        while self._waiting.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.005)

    def _write(self) -> None:
        while True:
            line = self._waiting.get()
            dropped, self.dropped = self.dropped, 0
            if dropped:
                line = f"({dropped} lines were dropped: nobody took them)\n{line}"
            try:
                self._inner.stream.write(line + "\n")
                self._inner.stream.flush()
            except (OSError, ValueError):
                self.dropped += dropped + 1
            self._waiting.task_done()


def get_logger(name: str) -> logging.Logger:
    """The logger of a module; `name` is the module's `__name__`."""
    return logging.getLogger(name)


def setup(level: str = "info", format: str = "text") -> None:
    """Send quire's log to standard error at `level` (debug, info, warning, error), as `format` (text, json)."""
    root = logging.getLogger("quire")
    root.setLevel(level.upper())
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.addFilter(RateLimit())
        root.addHandler(handler)
        root.propagate = False
    for each in root.handlers:
        each.setFormatter(JsonLines() if format == "json" else logging.Formatter(FORMAT, datefmt="%H:%M:%S"))


def write_aside() -> None:
    """From now on a thread writes the log; for processes that serve. Call it after `setup`."""
    root = logging.getLogger("quire")
    root.handlers = [Aside(each) if isinstance(each, logging.StreamHandler) else each for each in root.handlers]


@cache
def warn_once(logger: logging.Logger, message: str) -> None:
    """Warn with `message` the first time only."""
    logger.warning(message)
