"""`quire` as a process: fast, and alive where importing torch kills the interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.timing import children_cpu_s, takes_less_than
from tests.waiting import HANG_S

pytestmark = pytest.mark.plain


@pytest.fixture
def deadly_torch(tmp_path: Path) -> dict[str, str]:
    """An environment in which `import torch` ends the process at once."""
    (tmp_path / "torch.py").write_text("import os\nos._exit(66)\n")
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


def cpu_s(*words: str, env: dict[str, str]) -> float:
    """Processor seconds of a Python program: unlike wall time they do not count what others run."""
    before = children_cpu_s()
    done = subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return children_cpu_s() - before


@pytest.mark.parametrize("flag", ["--version", "--help"])
def test_version_and_help_are_fast_and_import_no_torch(flag: str, deadly_torch: dict[str, str]) -> None:
    """A few times what an empty program takes, however fast the machine is: about twice, when this was written."""
    command, nothing = ("-m", "quire.cli", flag), ("-c", "pass")
    assert takes_less_than(6, lambda: cpu_s(*nothing, env=deadly_torch), lambda: cpu_s(*command, env=deadly_torch))


def test_the_trap_is_a_trap(deadly_torch: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, "-c", "import torch"], env=deadly_torch, check=False)
    assert done.returncode == 66


def test_all_commands_but_the_engine_live_without_torch(deadly_torch: dict[str, str]) -> None:
    program = (
        "from quire.cli.main import COMMANDS, main\n"
        "assert [main([name, '--help']) for name in COMMANDS] == [0] * len(COMMANDS)\n"
        "assert main(['config', '--json']) == 0\n"
        "assert main(['serve', '--port', 'x']) == 2\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=deadly_torch, capture_output=True, text=True, timeout=HANG_S
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [["config"], ["config", "--help=log"]])
def test_a_reader_that_leaves_is_no_error(words: list[str], deadly_torch: dict[str, str]) -> None:
    command = [sys.executable, "-m", "quire.cli", *words]
    with subprocess.Popen(command, env=deadly_torch, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


CLOSED = """
import os, subprocess, sys
from quire.cli.main import main
main(["--version"])
opened = os.open(os.devnull, os.O_RDONLY)
child = subprocess.run([sys.executable, "-c", "import os; [os.fstat(n) for n in (0, 1, 2)]"])
sys.exit(opened <= 2 or child.returncode)
"""


def test_what_is_opened_later_is_nobodys_standard_output() -> None:
    words = ["sh", "-c", 'exec "$0" -c "$1" <&- >&-', sys.executable, CLOSED]
    done = subprocess.run(words, stderr=subprocess.PIPE, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr
