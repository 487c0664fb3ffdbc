"""What pip may install beside quire."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytestmark = pytest.mark.plain

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = [Requirement(line) for line in PROJECT["dependencies"]]
PINS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]


def test_the_core_is_small() -> None:
    assert len(CORE) < 20
    assert len({requirement.name for requirement in CORE}) == len(CORE)


@pytest.mark.parametrize(
    ("version", "accepted"),
    [
        ("2.9.0", True),
        ("2.9.1a0+git", True),
        ("2.9.0.dev20250901+cu130", True),
        ("2.11.0+rocm7.0", True),
        ("2.13.0+cpu", True),
        ("2.15.0", True),
        ("2.8.1", False),
        ("3.0.0", False),
    ],
)
def test_any_torch_of_the_range_will_do(version: str, accepted: bool) -> None:
    torch = next(requirement for requirement in CORE if requirement.name == "torch")
    assert torch.specifier.contains(version) is accepted


def test_constraints_pin_the_whole_core() -> None:
    pinned = {line.partition("==")[0] for line in PINS}
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in PINS), (
        "exact versions without local parts"
    )
    wanted = [*CORE, *(Requirement(line) for line in PROJECT["optional-dependencies"]["test"])]
    assert [requirement.name for requirement in wanted if requirement.name.lower() not in pinned] == []


def test_constraints_satisfy_the_ranges() -> None:
    versions = dict(line.split("==") for line in PINS)
    assert [str(r) for r in CORE if not r.specifier.contains(versions[r.name.lower()], prereleases=True)] == []


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize("present", [False, True])
def test_make_pins_no_torch_where_there_is_one(tmp_path: Path, present: bool) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path)], check=True)
    if present:
        next(tmp_path.glob("lib/python*/site-packages")).joinpath("torch.py").touch()
    made = tmp_path / "constraints.txt"
    # A make that runs the tests says to its children which environment is meant.
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    subprocess.run(["make", f"VENV={tmp_path}", str(made)], cwd=ROOT, env=env, check=True, capture_output=True)
    pinned = {line.partition("==")[0] for line in made.read_text().splitlines() if not line.startswith("#")}
    everything = {line.partition("==")[0] for line in PINS}
    assert pinned == everything - ({"torch", "triton"} if present else set())
