"""Flags come from the dataclasses: each field has one, and what is given reaches the configuration."""

import json
from dataclasses import fields
from types import ModuleType
from typing import Any

import pytest

from quire.base.errors import ConfigError
from quire.cli import chat, config, flags, run, serve
from quire.cli.config import run as show_config
from quire.config.fields import SECTIONS, Config
from quire.config.parse import kind_of
from tests.cli.fakes import parsed

pytestmark = pytest.mark.plain


FIELDS = [field for cls in SECTIONS.values() for field in fields(cls)]


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_every_field_has_a_flag(field: Any) -> None:
    flag = f"--{field.name.replace('_', '-')}"
    if kind_of(field).base is bool:
        assert flags.given(parsed(serve, flag)) == {field.name: True}
        assert flags.given(parsed(serve, flag.replace("--", "--no-", 1))) == {field.name: False}
    else:
        assert flags.given(parsed(serve, flag, "7")) == {field.name: "7"}


def test_the_flags_make_the_configuration() -> None:
    words = ("small", "-tp", "2", "--max-model-len", "4k", "--no-enable-prefix-caching", "--async-scheduling")
    words += ("--port", "0")
    made, provenance = flags.load(parsed(serve, *words))
    assert made.engine.model.model == "small" and made.engine.model.max_model_len == 4000
    assert made.engine.parallel.tensor_parallel_size == 2
    assert made.engine.cache.enable_prefix_caching is False
    assert made.engine.scheduler.async_scheduling is True
    assert made.server.port == 0
    assert provenance["tensor_parallel_size"] == "flag --tensor-parallel-size"


@pytest.mark.parametrize("words", ["m --port 1", "--port 1 m", "--port 1 --model m", "m --port 1 --model m"])
def test_the_model_may_stand_before_and_after_flags(words: str) -> None:
    assert flags.given(parsed(serve, *words.split())) == {"model": "m", "port": "1"}


def test_abbreviations_are_not_guessed() -> None:
    with pytest.raises(ConfigError, match="unknown flag --max-model; did you mean --max-model-len"):
        parsed(serve, "--max-model", "4")


@pytest.mark.parametrize("command", [run, chat])
def test_commands_without_a_server_have_no_server_flags(command: ModuleType) -> None:
    with pytest.raises(ConfigError, match="unknown flag --max-queued-requests"):
        parsed(command, "--max-queued-requests", "4")


def test_serve_hands_the_whole_configuration_to_the_server() -> None:
    seen: list[Config] = []

    def fake(config: Config) -> int:
        seen.append(config)
        return 5

    assert serve.run(parsed(serve, "--api-key", "k", "--threads", "1"), serve=fake) == 5
    assert (seen[0].server.api_key, seen[0].engine.device.threads) == ("k", 1)


def test_config_explains_what_serve_would_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert show_config(parsed(config, "--port", "81", "--api-key", "s3cret")) == 0
    shown = capsys.readouterr().out
    assert "port = 81    (flag --port)" in shown and "s3cret" not in shown


def test_config_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert show_config(parsed(config, "--json", "m")) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["model"]["model"] == {"value": "m", "source": "flag --model"}
    assert set(shown) == set(SECTIONS)
