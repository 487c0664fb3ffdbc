"""`quire collect-env`: complete without torch, and silent about secrets."""

import json
from pathlib import Path

import pytest

from quire.cli.collect_env import MASK
from quire.cli.collect_env import environment as telling
from quire.version import __version__
from tests.package.broken import environment, quire


@pytest.mark.plain
@pytest.mark.parametrize("kind", ["missing", "raises", "aborts", "exits"])
def test_without_a_usable_torch(tmp_path: Path, kind: str) -> None:
    done = quire("collect-env", "--json", env=environment(tmp_path, kind))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["quire"] == __version__
    assert report["torch"] is None
    assert "Fix: pip install" in report["troubles"][0]
    assert report["memory_bytes"] > 0
    assert report["packages"]["msgspec"]
    assert report["os"]


@pytest.mark.plain
def test_secrets_never_leave(tmp_path: Path) -> None:
    secrets = {
        "QUIRE_SERVER__API_KEY": "sesame",
        "HF_TOKEN": "sesame",
        "hf_password": "sesame",
        "NCCL_CREDENTIALS": "sesame",
        "HF_ENDPOINT": "https://me:sesame@mirror.example/",
    }
    done = quire("collect-env", env=environment(tmp_path, "missing") | secrets)
    assert done.returncode == 0
    assert "sesame" not in done.stdout
    assert f"QUIRE_SERVER__API_KEY: {MASK}" in done.stdout
    assert f"HF_ENDPOINT: https://{MASK}@mirror.example/" in done.stdout


@pytest.mark.plain
def test_only_telling_variables() -> None:
    assert telling({"OMP_NUM_THREADS": "2", "HOME": "/home/me", "SSH_AUTH_SOCK": "x", "CUDA_VISIBLE_DEVICES": ""}) == {
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "2",
    }


@pytest.mark.torch
def test_with_the_torch_that_is_here() -> None:
    report = json.loads(quire("collect-env", "--json").stdout)
    assert report["torch"]["version"] == report["packages"]["torch"]
    assert report["device"]
    assert report["troubles"] == []
