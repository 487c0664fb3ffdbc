"""Configuration files: YAML or TOML, with sections or flat keys, to one flat table of settings.

Knows the shape of files, not the types of values (`parse`). Called by `sources`.
"""

import json
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

from quire.base.errors import ConfigError
from quire.base.registry import did_you_mean
from quire.config import vllm
from quire.config.fields import SECTIONS, section_of


def _read_yaml(text: str) -> object:
    # Imported only for a YAML file, so that `quire doctor` can still tell that this package is missing.
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


READERS: dict[str, Callable[[str], object]] = {
    ".yaml": _read_yaml,
    ".yml": _read_yaml,
    ".json": json.loads,
    ".toml": tomllib.loads,
}


def read(path: str) -> dict[str, object]:
    """Field name to value, as the file has it.

    `model: {max_model_len: 4096}` and `max_model_len: 4096` say the same; `max-model-len` is taken too.
    Raises ConfigError for a file that cannot be read, and for an unknown or repeated key.
    """
    content = _parse(Path(path))
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: needs keys and values, such as `port: 8000`; found {type(content).__name__}")
    found: dict[str, object] = {}
    for name, value in _entries(path, content):
        if name in found:
            raise ConfigError(f"{path}: {name} is given twice; keep one")
        found[name] = value
    return found


def _parse(path: Path) -> object:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(f"{path}: unknown kind of file; name it .yaml, .yml, .json or .toml")
    try:
        return reader(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check the name after --config") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not well-formed: {' '.join(str(error).split())}") from None


def _entries(path: str, content: dict[object, object]) -> Iterator[tuple[str, object]]:
    for key, value in content.items():
        name = str(key).replace("-", "_")
        # "model" and "device" are sections and fields: a table is the section, anything else the field.
        if name in SECTIONS and isinstance(value, dict):
            for inner, inner_value in value.items():
                yield _field(path, str(inner).replace("-", "_"), name), inner_value
        elif name in SECTIONS and section_of(name) is None:
            if value is not None:
                raise ConfigError(f"{path}: {name} is a section and needs keys and values, not {value!r}")
        else:
            yield _field(path, name), value


def _field(path: str, name: str, section: str | None = None) -> str:
    known = section_of(name)
    if name in vllm.NAMES:
        return name
    if known is None:
        names = [f.name for cls in SECTIONS.values() for f in fields(cls)]
        remedy = did_you_mean(name, names, "`quire config` lists all keys")
        raise ConfigError(f"{path}: unknown key {f'{section}.{name}' if section else name!r}; {remedy}")
    if section and known[0] != section:
        raise ConfigError(f"{path}: {section}.{name} belongs in the section {known[0]}")
    return name
