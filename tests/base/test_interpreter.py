"""A child finds what its parent has found, whatever lies in the folder that both stand in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import quire
from quire.base.interpreter import python

pytestmark = pytest.mark.plain

PROGRAM = """
import subprocess
from quire.base.interpreter import python
print(subprocess.run([*python(), "-m", "json.tool", "--help"], capture_output=True, text=True).stdout)
"""


@pytest.mark.parametrize("looks_here", [False, True])
def test_the_current_folder_is_looked_into_as_by_the_parent(tmp_path: Path, looks_here: bool) -> None:
    stands, lies = tmp_path / "stands", tmp_path / "lies"
    for folder in (stands, lies):
        folder.mkdir()
    (stands / "argparse.py").write_text("print('from here'); raise SystemExit\n")
    program = (stands if looks_here else lies) / "program.py"
    program.write_text(PROGRAM)
    env = {**os.environ, "PYTHONPATH": str(Path(quire.__file__).parents[1])}
    env.pop("PYTHONSAFEPATH", None)
    done = subprocess.run([sys.executable, program], cwd=stands, env=env, capture_output=True, text=True)
    assert done.stdout.startswith("from here" if looks_here else "usage: python -m json.tool"), done.stderr


def test_a_child_begins_in_a_folder_that_has_been_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    done = subprocess.run([*python(), "-m", "json.tool", "--help"], capture_output=True, text=True)
    assert done.stdout.startswith("usage: python -m json.tool"), done.stderr
