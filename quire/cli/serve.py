"""`quire serve [MODEL]`: the HTTP server, with every setting as a flag."""

from argparse import Namespace
from collections.abc import Callable
from typing import cast

from quire.base.registry import load as load_object
from quire.cli import flags
from quire.cli.parser import Parser
from quire.config.fields import Config

Serve = Callable[[Config], int]


def add_arguments(parser: Parser) -> None:
    """Add MODEL and the flags of all sections."""
    parser.usage = "quire serve [MODEL] [FLAGS]"
    flags.add_model(parser)
    flags.add_settings(parser, flags.ALL)


def run(args: Namespace, serve: Serve | None = None) -> int:
    """Serve until told to stop. `serve` stands in for the server in tests."""
    config, _ = flags.load(args)
    start = serve or cast(Serve, load_object("quire.server.run:serve"))
    return start(config)
