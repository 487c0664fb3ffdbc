"""`quire config`: what the settings are, and where each one came from, without starting anything."""

import json
from argparse import Namespace

from quire.cli import flags
from quire.cli.parser import Parser
from quire.config.explain import as_json, explain


def add_arguments(parser: Parser) -> None:
    """Add MODEL, the two forms of output and the flags of all sections, so that a command line can be tried out."""
    parser.usage = "quire config [MODEL] [--explain | --json] [FLAGS]"
    flags.add_model(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--explain", action="store_true", help="as text, with a line of documentation each (the default)")
    form.add_argument("--json", action="store_true", help="as JSON: section, field, value and source")
    flags.add_settings(parser, flags.ALL)


def run(args: Namespace) -> int:
    """Print the settings; secrets are masked."""
    config, provenance = flags.load(args)
    print(json.dumps(as_json(config, provenance), indent=2) if args.json else explain(config, provenance))
    return 0
