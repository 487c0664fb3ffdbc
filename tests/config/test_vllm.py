"""What vLLM's users write: accepted where it changes nothing, put into quire's words, or refused with what helps."""

import logging
from pathlib import Path

import pytest

from quire.base.errors import ConfigError
from quire.base.logging import warn_once
from quire.cli import flags, serve
from quire.config import vllm
from quire.config.fields import Config, section_of
from quire.config.sources import engine_config, load
from tests.cli.fakes import parsed

pytestmark = pytest.mark.plain

UNIT_FILE = (
    "m --enable-auto-tool-choice --tool-call-parser hermes --disable-log-requests --swap-space 4 -O3 "
    "--pipeline-parallel-size 1 --enable-chunked-prefill --no-enable-lora --tokenizer-mode auto --task generate"
)


def test_no_name_is_a_setting_of_quire_s_own_and_none_is_both() -> None:
    assert not [name for name in vllm.NAMES if section_of(name)]
    assert not set(vllm.NEEDLESS) & set(vllm.REFUSED)
    assert vllm.SWITCHES | set(vllm.SHORT) | set(vllm.LISTS) <= vllm.NAMES
    assert all(section_of(name) for name in vllm.SAME)


def test_a_command_of_vllm_s_starts_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, "quire"):
        config, _ = load(flags.given(parsed(serve, *UNIT_FILE.split())), None, {})
    assert (config.engine.model.model, config.server.tool_call_parser) == ("m", "hermes")
    changed = {record.message.split()[1] for record in caplog.records if "changes nothing" in record.message}
    assert changed == {"--enable-auto-tool-choice", "--disable-log-requests", "--swap-space", "--compilation-config"}


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ("--pipeline-parallel-size 2", "--pipeline-parallel-size is vLLM's: use tensor_parallel_size"),
        ("-pp 2", "use tensor_parallel_size"),
        ("--enable-lora", "merge the adapter"),
        ("--no-enable-chunked-prefill", "always computed in chunks"),
        ("--speculative-config {}0", "speculative decoding is not served"),
        ("--hf-token x", "HF_TOKEN"),
        ("--tokenizer-mode mistral", "tokenizer.json"),
        ("--enable-chunked-prefill=False", "always computed in chunks"),
        ("--lora-modules a=b c=d", "merge the adapter"),
        ("--node-rank 1", "one host serves a model"),
        ("--cuda-graph-sizes 1 2 m", "invalid int value: 'm'"),
    ],
)
def test_what_is_not_served_is_refused_with_what_helps(words: str, remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        load(flags.given(parsed(serve, *words.split())), None, {})


@pytest.mark.parametrize(
    "words",
    [
        "--kv-sharing-fast-prefill m",
        "--cuda-graph-sizes 1 2 4 --model m",
        "m --cudagraph-capture-sizes 1 2 4",
        "--enable-lora=False --enable-chunked-prefill=True m",
        "--node-rank 0 --nnodes 1 --cpu-offload-gb 0.0 m",
    ],
)
def test_flags_of_vllm_s_take_what_they_take_there(words: str) -> None:
    assert load(flags.given(parsed(serve, *words.split())), None, {})[0].engine.model.model == "m"


def test_keywords_and_files_follow_the_same_rule(tmp_path: Path) -> None:
    made = engine_config(swap_space=4, enable_lora=False, speculative_config=None, seed=None, cpu_offload_gb=0.0)
    assert made == Config().engine
    with pytest.raises(ConfigError, match="keyword cpu_offload_gb is vLLM's: nothing is moved"):
        engine_config(cpu_offload_gb=4)
    file = tmp_path / "vllm.yaml"
    file.write_text("swap-space: 4\nport: 81\n")
    assert load({}, str(file), {})[0].server.port == 81
    file.write_text("data-parallel-size: 2\n")
    with pytest.raises(ConfigError, match="data_parallel_size is vLLM's: start a server for each"):
        load({}, str(file), {})


class _TorchType:
    def __str__(self) -> str:
        return "torch.float16"


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ({"dtype": "half"}, "dtype", "float16"),
        ({"dtype": _TorchType()}, "dtype", "float16"),
        ({"quantization": "awq_marlin"}, "quantization", "awq"),
        ({"generation_config": "vllm"}, "generation_config", "none"),
        ({"max_model_len": -1}, "max_model_len", None),
        ({"model": Path("/a/b")}, "model", "/a/b"),
    ],
)
def test_values_in_other_words(given: dict[str, object], name: str, value: object) -> None:
    assert getattr(engine_config(**given).model, name) == value


def test_a_key_set_for_vllm_is_asked_for_here_unless_a_file_has_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "s3cret")
    config, provenance = load({})
    assert (config.server.api_key, provenance["api_key"]) == ("s3cret", "environment VLLM_API_KEY")
    file = tmp_path / "quire.yaml"
    file.write_text("api_key: own\n")
    assert load({}, str(file))[0].server.api_key == "own"


def test_an_empty_variable_of_vllm_s_says_nothing_and_a_wrong_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "")
    assert load({})[0].server.api_key is None
    monkeypatch.setenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "perhaps")
    with pytest.raises(ConfigError, match="environment VLLM_ALLOW_LONG_MAX_MODEL_LEN: 'perhaps' is not true or false"):
        load({})
