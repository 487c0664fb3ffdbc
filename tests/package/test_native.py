"""Building the compiled kernels, and doing without: setup.py as pip runs it, on a copy of what it needs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.package.compilers import stand_in

pytestmark = pytest.mark.plain

ROOT = Path(__file__).parents[2]
LIBRARY = "quire/kernels/cpu/libquire_cpu.so"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with setup.py, the sources of the kernels and an almost empty package."""
    shutil.copy(ROOT / "setup.py", tmp_path)
    shutil.copytree(ROOT / "native", tmp_path / "native")
    for folder in ("quire", "quire/kernels", "quire/kernels/cpu"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "quire"\nversion = "0"\n[tool.setuptools.packages.find]\ninclude = ["quire*"]\n'
    )
    return tmp_path


def build(source: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Build as an editable installation does."""
    words = [sys.executable, "setup.py", "build_ext", "--inplace"]
    return subprocess.run(words, cwd=source, env=os.environ | environ, capture_output=True, text=True, timeout=280)


def test_without_a_compiler_it_is_said_and_nothing_stale_stays(source: Path) -> None:
    (source / LIBRARY).write_text("an earlier build")
    done = build(source, CXX="no-such-compiler")
    assert done.returncode == 0, done.stderr
    assert "without its own CPU kernels" in done.stderr and "no-such-compiler" in done.stderr
    assert not (source / LIBRARY).exists()


def test_a_compiler_that_fails_is_an_error_where_kernels_are_required(source: Path) -> None:
    assert build(source, CXX="false").returncode == 0
    done = build(source, CXX="false", QUIRE_REQUIRE_NATIVE="1")
    assert done.returncode != 0
    assert "QUIRE_REQUIRE_NATIVE=1" in done.stderr
    assert not (source / LIBRARY).exists()


def test_a_library_is_put_where_an_earlier_one_was(source: Path) -> None:
    (source / LIBRARY).write_text("an earlier build")
    done = build(source, CXX=stand_in(source), QUIRE_REQUIRE_NATIVE="1")
    assert done.returncode == 0, done.stderr
    assert (source / LIBRARY).read_bytes() == b""


def test_nothing_is_compiled_twice(source: Path) -> None:
    compiler = stand_in(source)
    assert build(source, CXX=compiler).returncode == 0
    made = (source / "made").read_text().split()
    assert build(source, CXX=compiler).returncode == 0
    again = (source / "made").read_text().split()[len(made) :]
    assert len(made) > 10 and again == made[-1:], "linked, and no more"
    os.utime(next((source / "native").glob("*.h")))
    assert build(source, CXX=compiler).returncode == 0
    assert sorted((source / "made").read_text().split()[len(made) + 1 :]) == sorted(made), "a header is newer"


@pytest.mark.skipif(not shutil.which("g++"), reason="there is no compiler")
def test_with_a_compiler_there_is_a_library(source: Path) -> None:
    made = ROOT / LIBRARY
    written = max(path.stat().st_mtime for path in (ROOT / "setup.py", *(ROOT / "native").rglob("*")))
    # What was made of these sources when quire was installed need not be made again, which takes long.
    if not made.exists() or made.stat().st_mtime < written:
        done = build(source, QUIRE_REQUIRE_NATIVE="1", CXX="g++", CXXFLAGS="-O0 -w")
        assert done.returncode == 0, done.stderr
        made = source / LIBRARY
    library = made.read_bytes()
    assert library.startswith(b"\x7fELF")
    assert b"libgomp" not in library and b"libtorch" not in library and b"libpython" not in library


@pytest.mark.skipif(not shutil.which("g++"), reason="there is no compiler")
def test_what_checks_the_library_under_sanitizers_and_emulators_knows_its_interface() -> None:
    sources = sorted((ROOT / "tests/native").glob("*.cpp"))
    done = subprocess.run(
        ["g++", "-std=c++17", "-fsyntax-only", f"-I{ROOT / 'native'}", *map(str, sources)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
