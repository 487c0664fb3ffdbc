"""The environment: settings by name, and a warning for what looks like one and is none."""

import logging
from dataclasses import fields

import pytest

from quire.base.logging import warn_once
from quire.config import environ
from quire.config.fields import SECTIONS
from quire.config.sources import engine_config, load

pytestmark = pytest.mark.plain


def test_every_field_has_a_variable_of_its_own() -> None:
    names = [environ.variable(section, f.name) for section, cls in SECTIONS.items() for f in fields(cls)]
    assert len(set(names)) == len(names)
    assert environ.settings(dict.fromkeys(names, "x")) == {f.name: "x" for c in SECTIONS.values() for f in fields(c)}


def test_other_variables_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    found = environ.settings({"PATH": "/bin", "HF_HUB_OFFLINE": "1", "QUIRE_MODEL__DTYPE": "float32"})
    assert found == {"dtype": "float32"}
    assert not caplog.records


def test_a_variable_of_another_server_counts_less_than_one_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    assert load({})[0].engine.device.deterministic is True
    assert engine_config().device.deterministic is True
    monkeypatch.setenv(environ.variable("device", "deterministic"), "0")
    assert load({})[0].engine.device.deterministic is False
    assert engine_config().device.deterministic is False


@pytest.mark.parametrize(
    ("slip", "meant"),
    [("QUIRE_MODEL__MAX_MODEL_LEM", "QUIRE_MODEL__MAX_MODEL_LEN"), ("QUIRE_PORT", "QUIRE_SERVER__PORT")],
)
def test_a_slip_is_warned_of_once(slip: str, meant: str, caplog: pytest.LogCaptureFixture) -> None:
    warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, "quire"):
        assert environ.settings({slip: "1"}) == {}
        assert environ.settings({slip: "1"}) == {}
    assert [meant in record.message for record in caplog.records] == [True]


def test_an_unlike_name_points_to_the_list(caplog: pytest.LogCaptureFixture) -> None:
    warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, "quire"):
        environ.settings({"QUIRE_ZZZZZ": "1"})
    assert "quire config" in caplog.text


def test_read_and_snapshot_see_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUIRE_SERVER__PORT", "81")
    assert environ.read("QUIRE_SERVER__PORT") == "81"
    assert environ.snapshot()["QUIRE_SERVER__PORT"] == "81"
    assert environ.settings()["port"] == "81"
    monkeypatch.delenv("QUIRE_SERVER__PORT")
    assert environ.read("QUIRE_SERVER__PORT") is None


def test_computing_processes_spin_briefly_and_take_huge_pages_unless_the_user_chose(monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "THP_MEM_ALLOC_ENABLE"):
        monkeypatch.delenv(name, raising=False)
    assert environ.computing() == {"GOMP_SPINCOUNT": "10000", "THP_MEM_ALLOC_ENABLE": "1"}
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert environ.computing() == {"THP_MEM_ALLOC_ENABLE": "1"}
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setenv("GOMP_SPINCOUNT", "5")
    assert environ.computing() == {}
