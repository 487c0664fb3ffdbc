"""Logging: one logger tree under `quire`, one line format, and messages that are said once.

Libraries do not configure logging; `setup` is called by the command line and by engine processes only.
"""

import logging
import sys
from functools import cache

FORMAT = "%(asctime)s %(levelname)-7s %(process)d %(name)s: %(message)s"


def get_logger(name: str) -> logging.Logger:
    """The logger of a module; `name` is the module's `__name__`."""
    return logging.getLogger(name)


def setup(level: str = "info") -> None:
    """Send quire's log to standard error at `level` (debug, info, warning, error)."""
    root = logging.getLogger("quire")
    root.setLevel(level.upper())
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(FORMAT, datefmt="%H:%M:%S"))
        root.addHandler(handler)
        root.propagate = False


@cache
def warn_once(logger: logging.Logger, message: str) -> None:
    """Warn with `message` the first time only."""
    logger.warning(message)
