"""Rules of the house that are read off the source."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.plain

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "quire"
SOURCES = sorted(PACKAGE.rglob("*.py"))
ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
# Each of them runs, or may run, what a stranger sent.
BANNED_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
BANNED_CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "os.system", "yaml.load", "yaml.unsafe_load"}


def where(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{node.lineno}"  # type: ignore[attr-defined]


def nodes(skip: str | None = None) -> Iterator[tuple[Path, ast.AST]]:
    """Every syntax node of the package."""
    for path in SOURCES:
        if path.relative_to(PACKAGE).as_posix() != skip:
            for node in ast.walk(ast.parse(path.read_text())):
                yield path, node


def imported(node: ast.AST) -> list[str]:
    """Modules that an import statement names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def test_the_environment_is_read_in_one_file() -> None:
    found = []
    for path, node in nodes(skip="config/environ.py"):
        attribute = isinstance(node, ast.Attribute) and node.attr in ENVIRONMENT
        by_name = any(name.split(".")[0] == "os" and name.split(".")[-1] in ENVIRONMENT for name in imported(node))
        if (attribute and isinstance(node.value, ast.Name) and node.value.id == "os") or by_name:
            found.append(where(path, node))
    assert found == []


def test_kernels_are_loaded_by_their_registry_only() -> None:
    found = [
        where(path, node)
        for path, node in nodes()
        if "kernels" not in path.relative_to(PACKAGE).parts
        and any(name.startswith("quire.kernels") for name in imported(node))
    ]
    assert found == []


def test_nothing_that_runs_what_a_stranger_sent() -> None:
    found = []
    for path, node in nodes():
        if any(name.split(".")[0] in BANNED_MODULES for name in imported(node)):
            found.append(where(path, node))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in BANNED_CALLS:
            found.append(where(path, node))
        if isinstance(node, ast.keyword) and node.arg == "shell":
            found.append(where(path, node.value))
    assert found == []


def test_every_module_says_what_it_is_for() -> None:
    assert [str(path) for path in SOURCES if not ast.get_docstring(ast.parse(path.read_text()))] == []


def test_sizes_keep_their_hard_stops() -> None:
    done = subprocess.run([sys.executable, ROOT / "tools" / "sizes.py"], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr


def test_unfinished_work_has_an_issue_and_no_comment() -> None:
    found = [
        f"{path.name}: {line}"
        for path in SOURCES
        for line in path.read_text().splitlines()
        if re.search(r"#.*\b(TODO|FIXME|XXX|HACK)\b", line)
    ]
    assert found == []


def test_every_folder_is_on_the_map() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    folders = [path.parent.name for path in PACKAGE.glob("*/__init__.py")] + ["assets"]
    assert [name for name in folders if f"{name}/" not in text] == []


def test_import_contracts() -> None:
    linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
