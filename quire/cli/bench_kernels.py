"""`quire bench kernels`: microseconds of each op of one step of a model, by each provider that can serve it.

The figures say which kernels a device should use, and where the time of a step goes. The work is in
`engine/kernel_times.py`, which is imported only when it is wanted: this file needs no torch.
"""

from argparse import Namespace
from collections.abc import Callable

from quire.base.errors import ConfigError
from quire.base.registry import load
from quire.checkpoint.facts import ModelFacts
from quire.cli.parser import Parser
from quire.config.fields import EngineConfig
from quire.config.model import facts_of

Measure = Callable[[EngineConfig, ModelFacts, int, int, int], list[dict[str, object]]]


def add_flags(parser: Parser) -> None:
    """Add the flags that say which step is measured."""
    parser.add_argument("--rows", type=int, default=1, metavar="N", help="sequences of the step, kernels [1]")
    parser.add_argument("--tokens", type=int, default=1, metavar="N", help="new tokens of each, kernels [1]")
    parser.add_argument("--context", type=int, default=128, metavar="N", help="past tokens of each, kernels [128]")


def kernels(args: Namespace, config: EngineConfig, measure: Measure | None = None) -> dict[str, object]:
    """The results for the step that `args` describes. `measure` stands in for the device in tests."""
    if args.rows < 1 or args.tokens < 1 or args.context < 0:
        raise ConfigError("--rows and --tokens must be at least 1, and --context at least 0")
    settings = config.model
    facts = facts_of(settings)
    measure = measure or load("quire.engine.kernel_times:measure")
    ops = measure(config, facts, args.rows, args.tokens, args.context)
    return {
        "kind": "kernels",
        "model": settings.model,
        "rows": args.rows,
        "tokens": args.tokens,
        "context": args.context,
        "ops": ops,
    }
