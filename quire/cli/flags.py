"""Flags made from the dataclasses of `config.fields`, and the configuration made from flags, file and environment.

A field is written once, there; its flag, help and parsing follow. Called by the commands that take settings.
"""

import argparse
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import Field, fields
from typing import Any, cast

from quire.base import logging
from quire.base.errors import ConfigError
from quire.cli.parser import Parser
from quire.config import sources, vllm
from quire.config.environ import variable
from quire.config.explain import show
from quire.config.fields import SECTIONS, Config, section_of
from quire.config.parse import Kind, Value, kind_of
from quire.config.sources import Provenance

ENGINE = tuple(section for section in SECTIONS if section != "server")
ALL = tuple(SECTIONS)


def add_settings(parser: Parser, sections: Sequence[str] = ENGINE) -> None:
    """Add `--config FILE` and a flag for each field of `sections`. Only flags that were given are in the namespace."""
    parser.add_argument("--config", dest="config_file", metavar="FILE", help="YAML or TOML file with settings")
    for section in sections:
        group = parser.add_argument_group(section, SECTIONS[section].__doc__)
        parser.topics[section] = "\n\n".join(describe(section, f) for f in fields(SECTIONS[section]))
        for field in fields(SECTIONS[section]):
            _add_flag(group, field)
            # "model" and "device" name a section and a flag; the section's text holds the flag's too.
            parser.topics.setdefault(field.name.replace("_", "-"), describe(section, field))
    _add_foreign(parser)


def add_setting(parser: Parser, name: str) -> None:
    """Add the flag of the one field `name`."""
    section, field = _find(name)
    _add_flag(parser.add_argument_group(section), field)
    parser.topics[name.replace("_", "-")] = describe(section, field)


def add_model(parser: Parser) -> None:
    """Add the positional MODEL, which says the same as `--model`."""
    parser.add_argument("model_name", nargs="?", metavar="MODEL", help="folder, .gguf file or hub name, as --model")


def given(args: Namespace) -> dict[str, object]:
    """Field name to text, for the settings that flags (or MODEL) gave. Raises ConfigError if MODEL is given twice."""
    values = {name: value for name, value in vars(args).items() if section_of(name) or name in vllm.NAMES}
    positional = vars(args).get("model_name")
    if positional is not None:
        if values.get("model", positional) != positional:
            raise ConfigError(f"two models: {positional} and --model {values['model']}; keep one")
        values["model"] = positional
    return values


def load(args: Namespace, *, quiet: bool = False) -> tuple[Config, Provenance]:
    """The configuration of a command, and where each value came from; starts the log.

    Args:
        quiet: log warnings only, unless somebody set log_level.
    """
    config, provenance = sources.load(given(args), args.config_file)
    unsaid = provenance["log_level"] == "default"
    logging.setup("warning" if quiet and unsaid else config.engine.log.log_level, config.engine.log.log_format)
    return config, provenance


def describe(section: str, field: "Field[Any]") -> str:
    """All about one field, as `--help=FLAG` prints it."""
    kind = kind_of(field)
    default = "unset" if field.default is None else show(cast(Value, field.default))
    return "\n".join(
        [
            f"{', '.join(spellings(field, kind))}",
            f"    {field.metadata['help']}",
            f"    takes {kind.accepts}; default {default}",
            f"    file: {section}.{field.name}   environment: {variable(section, field.name)}",
        ]
    )


def spellings(field: "Field[Any]", kind: Kind) -> list[str]:
    """How the flag is written: short form, long form and, for a switch, its negative."""
    name = field.name.replace("_", "-")
    short = field.metadata["short"]
    return ([f"-{short}"] if short else []) + [f"--{name}"] + ([f"--no-{name}"] if kind.base is bool else [])


def _add_flag(group: argparse._ActionsContainer, field: "Field[Any]") -> None:
    kind = kind_of(field)
    names = [spelling for spelling in spellings(field, kind) if not spelling.startswith("--no-")]
    text = field.metadata["help"].replace("%", "%%")
    if field.default is not None:
        text += f" [{show(cast(Value, field.default))}]"
    if kind.base is bool:
        group.add_argument(
            *names, dest=field.name, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text
        )
    else:
        group.add_argument(*names, dest=field.name, default=argparse.SUPPRESS, metavar=_metavar(kind), help=text)


def _add_foreign(parser: Parser) -> None:
    """Flags of vLLM's, which help does not list: what comes of them is said where they are read."""
    for name in sorted(vllm.NAMES):
        names = [f"-{vllm.SHORT[name]}"] if name in vllm.SHORT else []
        names.append(f"--{name.replace('_', '-')}")
        taken: dict[str, Any] = {}
        if name in vllm.SWITCHES:
            taken = {"action": argparse.BooleanOptionalAction}
        elif name in vllm.LISTS:
            taken = {"nargs": "+", "type": vllm.LISTS[name]}
        parser.add_argument(*names, dest=name, default=argparse.SUPPRESS, help=argparse.SUPPRESS, **taken)


def _metavar(kind: Kind) -> str:
    if kind.choices:
        return "{" + ",".join(kind.choices) + "}"
    return {int: "N", float: "X", str: "TEXT", dict: "JSON"}[kind.base]


def _find(name: str) -> "tuple[str, Field[Any]]":
    known = section_of(name)
    if known is None:
        raise KeyError(name)
    return known
