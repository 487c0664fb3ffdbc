"""One version everywhere, told at once, whatever the state of torch."""

import email
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import quire
from quire.version import __version__
from tests.package.broken import TORCHES, environment
from tests.package.broken import quire as command
from tests.package.compilers import stand_in

pytestmark = pytest.mark.plain

ROOT = Path(__file__).parents[2]


def test_the_literal_is_the_version_everywhere() -> None:
    assert quire.__version__ == __version__
    assert metadata.version("quire") == __version__
    assert re.fullmatch(r"\d+\.\d+\.\d+([ab]\d+|rc\d+|\.dev\d+)?", __version__)


@pytest.mark.parametrize("kind", [kind for kind in TORCHES if kind != "hangs"])
@pytest.mark.parametrize("flag", ["--version", "--help"])
def test_the_command_answers_whatever_torch_is(tmp_path: Path, kind: str, flag: str) -> None:
    done = command(flag, env=environment(tmp_path, kind))
    assert done.returncode == 0
    assert __version__ in done.stdout
    assert done.stderr == ""


def test_the_installed_script_is_the_same_command() -> None:
    script = shutil.which("quire", path=str(Path(sys.executable).parent))
    assert script, "the package is not installed beside this interpreter"
    for words in ([script], [sys.executable, "-m", "quire"]):
        done = subprocess.run([*words, "--version"], capture_output=True, text=True, timeout=60)
        assert done.stdout == f"quire {__version__}\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built offline from a source tarball, in a folder without git."""
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    # A copy, since a build leaves folders behind that the next one would pack again.
    shutil.copytree(ROOT / "quire", source / "quire", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    shutil.copytree(ROOT / "native", source / "native")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "import sys; from setuptools import build_meta as b; {}(sys.argv[1])"
    in_source = [sys.executable, "-c", build.format("b.build_sdist"), str(folder)]
    subprocess.run(in_source, cwd=source, check=True, capture_output=True, timeout=600)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as tarball:
        tarball.extractall(folder / "unpacked", filter="data")
    unpacked = next((folder / "unpacked").iterdir())
    sources = {path.relative_to(source) for path in (source / "native").rglob("*.*")}
    assert sources == {path.relative_to(unpacked) for path in (unpacked / "native").rglob("*.*")}
    in_unpacked = [sys.executable, "-c", build.format("b.build_wheel"), str(folder)]
    # What is compiled is not looked at here.
    hasty = os.environ | {"CXX": stand_in(folder), "QUIRE_REQUIRE_NATIVE": "1"}
    subprocess.run(in_unpacked, cwd=unpacked, env=hasty, check=True, capture_output=True, timeout=600)
    return next(folder.glob("*.whl"))


def test_the_wheel_says_the_version(wheel: Path) -> None:
    # For every Python, but for one kind of machine: the CPU kernels are in it where there is a compiler.
    assert wheel.name.startswith(f"quire-{__version__}-py3-none-")
    with zipfile.ZipFile(wheel) as files:
        said = email.message_from_bytes(files.read(f"quire-{__version__}.dist-info/METADATA"))
    assert said["Name"] == "quire"
    assert said["Version"] == __version__
    assert said["Requires-Python"] == ">=3.11"


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as files:
        names = set(files.namelist())
    assert {name.split("/")[0] for name in names} == {"quire", f"quire-{__version__}.dist-info"}
    present = {path.relative_to(ROOT).as_posix() for path in (ROOT / "quire").rglob("*") if path.is_file()}
    compiled = "quire/kernels/cpu/libquire_cpu.so"
    assert {name for name in present if "__pycache__" not in name and name != compiled} <= names
    if platform.machine() == "x86_64":
        assert compiled in names
    assert any(name.endswith("LICENSE") for name in names)


def test_building_needs_neither_torch_nor_a_compiler() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]
    assert [re.split("[<>=~!]", line)[0] for line in build["requires"]] == ["setuptools"]
