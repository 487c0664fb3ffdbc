"""`quire config`: each setting with its value, where it came from and what it does. Secrets are masked.

Pure text from a configuration and its provenance. Called by the command line.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields

from quire.config.environ import variable
from quire.config.fields import SECTIONS, Config
from quire.config.parse import Value
from quire.config.sources import Provenance

MASK = "********"


@dataclass(frozen=True, slots=True)
class Row:
    """One setting as it is shown."""

    section: str
    name: str
    value: Value
    source: str
    help: str


def rows(config: Config, provenance: Provenance) -> Iterator[Row]:
    """Every setting in the order of the sections; a secret that is set has the value `MASK`."""
    for section, cls in SECTIONS.items():
        values = config.server if section == "server" else getattr(config.engine, section)
        for field in fields(cls):
            value = getattr(values, field.name)
            if field.metadata["secret"] and value is not None:
                value = MASK
            yield Row(section, field.name, value, provenance[field.name], field.metadata["help"])


def explain(config: Config, provenance: Provenance) -> str:
    """The text of `quire config --explain`."""
    blocks: dict[str, list[str]] = {section: [f"[{section}]  {cls.__doc__}"] for section, cls in SECTIONS.items()}
    for row in rows(config, provenance):
        value = "unset" if row.value is None else show(row.value)
        blocks[row.section] += [
            f"  {row.name} = {value}    ({row.source})",
            f"      {row.help} {variable(row.section, row.name)}",
        ]
    return "\n\n".join("\n".join(block) for block in blocks.values())


def as_json(config: Config, provenance: Provenance) -> dict[str, dict[str, dict[str, Value]]]:
    """Section, then field, to `{"value": ..., "source": ...}`."""
    table: dict[str, dict[str, dict[str, Value]]] = {section: {} for section in SECTIONS}
    for row in rows(config, provenance):
        table[row.section][row.name] = {"value": row.value, "source": row.source}
    return table


def show(value: Value) -> str:
    """A value as one would write it in a file."""
    if isinstance(value, dict):
        return json.dumps(value)
    return str(value).lower() if isinstance(value, bool) else str(value)
