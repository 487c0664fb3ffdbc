"""Writes docs/configuration.md from the dataclasses in `quire.config.fields`.

    python tools/make_config_docs.py

A test compares the document with `render()`, so that no setting is ever undocumented.
"""

from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from quire.cli.flags import spellings
from quire.config.environ import variable
from quire.config.explain import show
from quire.config.fields import SECTIONS
from quire.config.parse import kind_of

DOCUMENT = Path(__file__).parent.parent / "docs" / "configuration.md"

HEAD = """# Configuration

<!-- Made by tools/make_config_docs.py from quire/config/fields.py. Do not edit. -->

Every setting is one field. `model.max_model_len` is at once

- the flag `--max-model-len 4096` of `quire serve` (and of `run`, `chat`, `bench` for all sections but `server`),
- the environment variable `QUIRE_MODEL__MAX_MODEL_LEN=4096`,
- the key `max_model_len` in a YAML or TOML file given with `--config FILE`, under `model:` or at the top,
- the keyword `LLM(max_model_len=4096)` in Python, for all sections but `server`.

Where a setting is given more than once, flags and keywords win over the environment, the environment over the file, the
file over the default. `quire config --explain` prints each value and where it came from; it takes the same flags, so
`quire config --port 80` shows what `quire serve --port 80` would use. Unknown names are errors that name the nearest
known ones (in the environment: a warning).

Whole numbers may end in `k`, `m`, `g`, `t` (thousands: 1k = 1000) or `K`, `M`, `G`, `T` (1K = 1024). Switches are
`--name` and `--no-name` as flags, `true` and `false` elsewhere. `auto` leaves a number unset.
[`examples/config.yaml`](../examples/config.yaml) is a file to start from.

Settings of vLLM's that change nothing here (`--swap-space`, `--enable-auto-tool-choice`, `-O3`, ...) are accepted with
a warning, as are those that ask for nothing (`--pipeline-parallel-size 1`). What is not served is refused with what
helps instead. Its words for values are understood (`--dtype half`, `--max-model-len -1`), and of its variables
`VLLM_API_KEY`, `VLLM_ALLOW_LONG_MAX_MODEL_LEN` and `VLLM_BATCH_INVARIANT`, which count less than a file of one's own.
"""


def render() -> str:
    """The whole document."""
    return "\n".join([HEAD, *(_section(name, cls) for name, cls in SECTIONS.items())])


def _section(name: str, cls: type) -> str:
    rows = [_row(name, field) for field in fields(cls)]
    return "\n".join(
        [f"## {name}", "", f"{cls.__doc__}", "", "| flag | takes | default | |", "|---|---|---|---|", *rows, ""]
    )


def _row(section: str, field: "Field[Any]") -> str:
    kind = kind_of(field)
    flags = ", ".join(f"`{spelling}`" for spelling in spellings(field, kind))
    takes = {str: "text", int: "whole number", float: "number", bool: "switch", dict: "JSON object"}[kind.base]
    if kind.choices:
        takes = ", ".join(f"`{choice}`" for choice in kind.choices)
    default = "unset" if field.default is None else f"`{show(field.default)}`"
    return f"| {flags} <br> `{variable(section, field.name)}` | {takes} | {default} | {field.metadata['help']} |"


if __name__ == "__main__":
    DOCUMENT.write_text(render(), encoding="utf-8")
    print(f"wrote {DOCUMENT}")
