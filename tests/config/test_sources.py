"""Defaults < file < environment < flags, each value with where it came from; unknown names get the nearest ones."""

from pathlib import Path

import pytest

from quire.base.errors import ConfigError
from quire.config.fields import CacheConfig, Config, EngineConfig, ModelConfig, ServerConfig
from quire.config.sources import engine_config, flatten, load

pytestmark = pytest.mark.plain

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def write(tmp_path: Path):  # type: ignore[no-untyped-def]
    """A function that writes a configuration file and returns its name."""

    def write(name: str, content: str) -> str:
        path = tmp_path / name
        path.write_text(content)
        return str(path)

    return write


def test_nothing_said_gives_the_defaults() -> None:
    config, provenance = load({}, None, {})
    assert config == Config()
    assert set(provenance.values()) == {"default"}


def test_later_places_win_and_are_named(write) -> None:  # type: ignore[no-untyped-def]
    file = write("quire.yaml", "max_num_seqs: 1\nblock_size: 1\nport: 1\nhost: filehost\n")
    config, provenance = load({"block_size": "3", "port": "3"}, file, {"max_num_seqs": "2", "port": "2"})
    assert (config.server.host, config.engine.scheduler.max_num_seqs) == ("filehost", 2)
    assert (config.engine.cache.block_size, config.server.port) == (3, 3)
    assert provenance["host"] == f"file {file}"
    assert provenance["max_num_seqs"] == "environment QUIRE_SCHEDULER__MAX_NUM_SEQS"
    assert provenance["port"] == "flag --port"
    assert provenance["dtype"] == "default"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.yaml", "model:\n  model: m\n  max_model_len: 4K\nserver: {port: 80}\n"),
        ("b.yml", "model: m\nmax-model-len: 4096\nport: 80\n"),
        ("c.toml", "port = 80\n[model]\nmodel = 'm'\nmax_model_len = 4096\n"),
        ("d.json", '{"model": {"model": "m", "max-model-len": "4096"}, "port": 80, "cache": null}'),
    ],
)
def test_files_say_the_same_in_each_form(name: str, content: str, write) -> None:  # type: ignore[no-untyped-def]
    config, _ = load({}, write(name, content), {})
    expected = EngineConfig(model=ModelConfig(model="m", max_model_len=4096))
    assert config == Config(engine=expected, server=ServerConfig(port=80))


def test_a_file_may_be_empty(write) -> None:  # type: ignore[no-untyped-def]
    assert load({}, write("a.yaml", "# nothing yet\n"), {})[0] == Config()


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.yaml", "max_model_lem: 4", "unknown key 'max_model_lem'; did you mean max_model_len"),
        ("a.yaml", "cache: {blok_size: 4}", r"unknown key 'cache\.blok_size'; did you mean block_size"),
        ("a.yaml", "zzzzzz: 4", "`quire config` lists all keys"),
        ("a.yaml", "cache: {port: 4}", "cache.port belongs in the section server"),
        ("a.yaml", "port: 4\nserver: {port: 5}", "port is given twice"),
        ("a.yaml", "cache: 4", "cache is a section"),
        ("a.yaml", "- port", "needs keys and values"),
        ("a.yaml", "port: [", "not well-formed"),
        ("a.toml", "port =", "not well-formed"),
        ("a.ini", "port = 4", "name it .yaml"),
        ("a.yaml", "port: http", r"a\.yaml: port: 'http' is not a whole number"),
        ("a.yaml", "api_key: 12345", "api_key: 12345 is not a text; put it in quotes"),
        ("a.yaml", "port: 70000", "port must be at least 0 and at most 65535, not 70000; 0 picks a free port"),
    ],
)
def test_wrong_files_say_why(name: str, content: str, complaint: str, write) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=complaint):
        load({}, write(name, content), {})


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read .*--config"):
        load({}, "nowhere.yaml", {})


def test_a_value_that_is_overridden_must_be_right_too() -> None:
    with pytest.raises(ConfigError, match="environment QUIRE_SERVER__PORT: 'x' is not a whole number"):
        load({"port": "80"}, None, {"port": "x"})


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="kv_cache_memory_bytes and num_gpu_blocks_override"):
        load({"kv_cache_memory_bytes": "1G", "num_gpu_blocks_override": "9"}, None, {})


def test_an_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean port"):
        load({"prot": "80"}, None, {})


def test_keywords_make_an_engine() -> None:
    engine = engine_config(model="m", max_model_len=128, enable_prefix_caching=False, tensor_parallel_size=2)
    assert (engine.model.model, engine.model.max_model_len) == ("m", 128)
    assert engine.cache == CacheConfig(enable_prefix_caching=False)
    assert engine.parallel.tensor_parallel_size == 2


def test_keywords_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUIRE_DEVICE__KERNELS", "reference")
    monkeypatch.setenv("QUIRE_MODEL__SEED", "1")
    monkeypatch.setenv("QUIRE_SERVER__PORT", "not for an engine")
    engine = engine_config(seed=2)
    assert (engine.device.kernels, engine.model.seed) == ("reference", 2)


@pytest.mark.parametrize(
    ("keyword", "complaint"),
    [
        ("max_model_length", "unknown keyword 'max_model_length'; did you mean max_model_len"),
        ("port", "port is a setting of the server"),
    ],
)
def test_wrong_keywords_say_why(keyword: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        engine_config(**{keyword: 1})


def test_a_model_that_is_none_is_not_the_default_one() -> None:
    assert engine_config(dtype=None) == EngineConfig()
    with pytest.raises(ConfigError, match="keyword model: None is not a text"):
        engine_config(model=None)


def test_flattening_loses_nothing() -> None:
    engine = engine_config(max_model_len=77, watermark=0.25, async_scheduling=True, event_log="f")
    assert engine_config(**flatten(engine)) == engine
    assert engine != EngineConfig()


def test_the_example_is_right() -> None:
    config, provenance = load({}, str(ROOT / "examples" / "config.yaml"), {})
    assert config.server.max_body_bytes == 16 << 20
    assert sum(place != "default" for place in provenance.values()) >= 8
