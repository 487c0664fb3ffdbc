"""`quire doctor`: what it prints, and the exit status, with a sound torch and with broken ones."""

import os
import subprocess
from argparse import Namespace
from importlib.util import spec_from_file_location
from pathlib import Path

import pytest

from quire.base import interpreter
from quire.cli import child, doctor
from quire.config.spec import PlatformFacts
from quire.messages.survey import OpReport, Survey, TorchReport, Trouble
from tests.package.broken import environment, quire

TORCH = TorchReport(
    version="2.13.0+cu130",
    build="cuda",
    distributed=False,
    threads=4,
    cpu_capability="AVX2",
    archs=[],
    gpus=["0: H200"],
)
PLATFORM = PlatformFacts(
    name="cuda",
    device="cuda:0",
    device_name="NVIDIA H200",
    arch="sm_90",
    total_bytes=141 << 30,
    providers=["torch_native"],
    refused={"triton": "no compiler"},
    dtypes=["bfloat16"],
    page_size=64,
    warnings=["mind the gap"],
)


def said(survey: Survey, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit status and output of the doctor when the child reports `survey`."""
    monkeypatch.setattr(doctor, "ask", lambda device, kernels: survey)
    status = doctor.run(Namespace(device=None, kernels=None))
    return status, capsys.readouterr().out


@pytest.mark.plain
def test_a_sound_machine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ops = [
        OpReport("rope", {"reference": 2}, {"torch_native": "not implemented"}),
        OpReport("norm", {"a": 3, "b": 1}, {}),
    ]
    status, text = said(Survey(torch=TORCH, platform=PLATFORM, ops=ops), monkeypatch, capsys)
    assert status == 0
    for part in (
        "2.13.0+cu130",
        "without (one device only) torch.distributed",
        "GPU 0: H200",
        "cuda:0: NVIDIA H200",
        "not triton: no compiler",
        "mind the gap",
        "not torch_native: not implemented",
        "a (3 of 4), b (1 of 4)",
        "Nothing is in the way.",
    ):
        assert part in text


@pytest.mark.plain
def test_what_is_in_the_way_comes_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, text = said(Survey(torch=TORCH, troubles=[Trouble("A GPU is shut.", "open it")]), monkeypatch, capsys)
    assert status == 1
    assert "A GPU is shut." in text
    assert "fix: open it" in text


@pytest.mark.plain
def test_torch_without_bytecode_costs_time_at_each_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(interpreter, "find_spec", lambda name: spec_from_file_location(name, package / "__init__.py"))
    (line,) = doctor.bytecode()
    subprocess.run(line.partition("fix: ")[2].split(), check=True)
    assert doctor.bytecode() == []
    monkeypatch.setattr(interpreter, "find_spec", lambda name: None)
    assert doctor.bytecode() == []


@pytest.mark.plain
def test_a_missing_package_is_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_is_installed", lambda name: name != "numpy")
    assert [trouble.fix for trouble in doctor.missing_packages()] == ["pip install numpy"]


@pytest.mark.plain
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "No module named 'torch'"),
        ("raises", "libcudart.so.99"),
        ("aborts", "SIGABRT"),
        ("exits", "exit code 7"),
    ],
)
def test_a_broken_torch_is_in_the_way(tmp_path: Path, kind: str, words: str) -> None:
    done = quire("doctor", env=environment(tmp_path, kind))
    assert done.returncode == 1
    assert words in done.stdout
    assert "fix: pip install" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.plain
def test_a_torch_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", environment(tmp_path, "hangs")["PYTHONPATH"])
    (trouble,) = child.ask(timeout_s=2.0).troubles
    assert "did not answer in 2 s" in trouble.what


@pytest.mark.torch
def test_this_machine() -> None:
    done = quire("doctor", "--device", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "op by op" in done.stdout
    assert "rms_norm" in done.stdout
    assert "not triton" in done.stdout


@pytest.mark.torch
def test_a_processor_held_to_avx2() -> None:
    done = quire("doctor", "--device", "cpu", env=os.environ | {"ATEN_CPU_CAPABILITY": "avx2"})
    assert done.returncode == 0
    assert "avx512" not in done.stdout


@pytest.mark.torch
@pytest.mark.parametrize(("flag", "value"), [("--device", "cuda:63"), ("--kernels", "triton_of_old")])
def test_what_cannot_be_had_is_in_the_way(flag: str, value: str) -> None:
    done = quire("doctor", flag, value)
    assert done.returncode == 1
    assert value in done.stdout
