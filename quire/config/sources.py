"""Where settings come from: defaults < variables of other servers < file < environment < flags (or keywords).

The one place that makes configurations from what people wrote, each value with its provenance. Knows nothing of models
or devices (`resolve`). Called by the command line (`load`) and by the Python API (`engine_config`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, fields
from typing import Any

from quire.base.errors import ConfigError
from quire.base.registry import did_you_mean
from quire.config import environ as environment
from quire.config import files, vllm
from quire.config.check import check_cache, check_value
from quire.config.fields import SECTIONS, Config, EngineConfig, section_of
from quire.config.parse import Value, convert, kind_of

Provenance = dict[str, str]
"""Field name to the place its value came from: "default", "file quire.yaml", "environment QUIRE_...", "flag --..."."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What was written for the field `name`, the `place` it was written in, and how errors call the two together."""

    name: str
    written: object
    place: str
    label: str


def load(
    argv_values: Mapping[str, object], file: str | None = None, environ: Mapping[str, str] | None = None
) -> tuple[Config, Provenance]:
    """The configuration of a command, and where each value came from.

    Args:
        argv_values: field name to text (or value), of the flags that were given.
        file: a YAML or TOML file.
        environ: field name to text; None reads the process's environment, variables of other servers included.

    Raises ConfigError that names the place, the field and the remedy, also for values that a later place overrides.
    """
    given = _from_others() if environ is None else []
    if file is not None:
        given += [Setting(name, value, f"file {file}", f"{file}: {name}") for name, value in files.read(file).items()]
    given += _from_environment(environ)
    given += [_given(name, value, f"flag {flag(name)}") for name, value in argv_values.items()]
    return _build(given)


def engine_config(**keywords: object) -> EngineConfig:
    """What `LLM(...)` is made from: the keywords are field names of `EngineConfig`'s sections; the environment counts.

    None says nothing where a setting has a value in any case, except for the model: whoever computed its name wants it.
    Raises ConfigError for an unknown keyword (with the nearest names) and for a wrong value.
    """
    given = [g for g in (*_from_others(), *_from_environment(None)) if g.name in ENGINE_FIELDS]
    for name, value in keywords.items():
        if name not in ENGINE_FIELDS and name not in vllm.NAMES:
            raise ConfigError(_unknown_keyword(name))
        if value is not None or name == "model" or name in vllm.NAMES or kind_of(_find(name)[1]).optional:
            given.append(_given(name, value, f"keyword {name}"))
    return _build(given)[0].engine


def flatten(engine: EngineConfig) -> dict[str, Value]:
    """Every engine setting by field name, so that `engine_config(**flatten(e)) == e`."""
    sections = [getattr(engine, section.name) for section in fields(EngineConfig)]
    return {f.name: getattr(section, f.name) for section in sections for f in fields(section)}


def flag(name: str) -> str:
    """The flag of a field: `--max-model-len`."""
    return f"--{name.replace('_', '-')}"


ENGINE_FIELDS = tuple(flatten(EngineConfig()))


def _given(name: str, written: object, place: str) -> Setting:
    return Setting(name, written, place, place)


def _from_environment(environ: Mapping[str, str] | None) -> list[Setting]:
    texts = environment.settings() if environ is None else environ
    return [
        _given(name, text, f"environment {environment.variable(_find(name)[0], name)}") for name, text in texts.items()
    ]


def _from_others() -> list[Setting]:
    return [
        _given(name, text, f"environment {environment.OTHER_NAMES[name]}")
        for name, text in environment.of_others().items()
    ]


def _build(given: Iterable[Setting]) -> tuple[Config, Provenance]:
    sections: dict[str, dict[str, Value]] = {section: {} for section in SECTIONS}
    provenance = dict.fromkeys(_all_names(), "default")
    for one in given:
        if one.name in vllm.NAMES:
            vllm.check(one.name, one.written, one.label)
            continue
        section, field = _find(one.name)
        value = convert(kind_of(field), vllm.translated(one.name, one.written), one.label)
        check_value(one.name, value, one.label)
        sections[section][one.name] = value
        provenance[one.name] = one.place
    made: dict[str, Any] = {section: cls(**sections[section]) for section, cls in SECTIONS.items()}
    server = made.pop("server")
    config = Config(engine=EngineConfig(**made), server=server)
    check_cache(config.engine.cache)
    return config, provenance


def _find(name: str) -> tuple[str, "Field[Any]"]:
    known = section_of(name)
    if known is None:
        raise ConfigError(f"unknown setting {name!r}; {did_you_mean(name, _all_names())}")
    return known


def _all_names() -> list[str]:
    return [f.name for cls in SECTIONS.values() for f in fields(cls)]


def _unknown_keyword(name: str) -> str:
    if section_of(name) is not None:
        return f"{name} is a setting of the server, not of the engine; give it to `quire serve {flag(name)}`"
    return f"unknown keyword {name!r}; {did_you_mean(name, list(ENGINE_FIELDS), '`quire config` lists all')}"
