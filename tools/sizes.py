"""Prints how large the package is, folder by folder, and the change against main; fails where a hard stop is passed.

    python tools/sizes.py [PACKAGE]

Hard stops: 500 lines a file, 60 lines a function. More than 6 parameters are only pointed out: ops and public calls may
need them. Reads the sources only.
"""

import ast
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FILE_LINES, FUNCTION_LINES, PARAMETERS = 500, 60, 6
GROWTH = 0.02
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Size:
    """One source file: its lines, and its functions as (name, lines, parameters)."""

    path: Path
    lines: int
    functions: list[tuple[str, int, int]]


def main(package: str = "quire") -> int:
    """Print the table; 1 if a hard stop is passed."""
    root = Path(__file__).parent.parent
    sizes = [measure(path, root) for path in sorted((root / package).rglob("*.py"))]
    print("\n".join([*table(sizes), *summary(sizes), *against_main(root, package, sum(size.lines for size in sizes))]))
    passed = [line for size in sizes for line in offences(size)]
    print("\n".join([*crowded(sizes), *passed]))
    return 1 if passed else 0


def measure(path: Path, root: Path) -> Size:
    """Count one file."""
    text = path.read_text()
    nodes = (node for node in ast.walk(ast.parse(text)) if isinstance(node, Function))
    return Size(path.relative_to(root), text.count("\n"), [count(node) for node in nodes])


def count(node: Function) -> tuple[str, int, int]:
    """Name, lines without the docstring, and parameters (self, cls and *variable ones aside) of a function."""
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    given = [
        a.arg for a in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs] if a.arg not in ("self", "cls")
    ]
    return node.name, lines, len(given)


def offences(size: Size) -> Iterator[str]:
    """A line for each hard stop that this file passes."""
    if size.lines > FILE_LINES:
        yield f"{size.path}: {size.lines} lines; split it (hard stop {FILE_LINES})"
    for name, lines, _ in size.functions:
        if lines > FUNCTION_LINES:
            yield f"{size.path}: {name} has {lines} lines; split it (hard stop {FUNCTION_LINES})"


def crowded(sizes: list[Size]) -> Iterator[str]:
    """A line for each function that a dataclass might suit better than its parameters."""
    for size in sizes:
        for name, _, parameters in size.functions:
            if parameters > PARAMETERS:
                yield f"note: {size.path}: {name} takes {parameters} parameters"


def table(sizes: list[Size]) -> Iterator[str]:
    """Files and lines of each folder."""
    folders: dict[str, list[int]] = {}
    for size in sizes:
        folders.setdefault("/".join(size.path.parts[:2]) if len(size.path.parts) > 2 else "(top)", []).append(
            size.lines
        )
    yield f"{'folder':<24}{'files':>6}{'lines':>8}{'largest':>9}"
    for folder, lines in sorted(folders.items()):
        yield f"{folder:<24}{len(lines):>6}{sum(lines):>8}{max(lines):>9}"


def summary(sizes: list[Size]) -> Iterator[str]:
    """Totals, and medians of files and functions."""
    functions = [lines for size in sizes for _, lines, _ in size.functions]
    files = [size.lines for size in sizes if size.lines]
    yield f"{'total':<24}{len(sizes):>6}{sum(files):>8}{max(files):>9}"
    yield (
        f"median file {statistics.median(files):.0f} lines; functions: median {statistics.median(functions):.0f}, "
        f"95 % under {statistics.quantiles(functions, n=20)[-1]:.0f}, largest {max(functions)} lines"
    )


def against_main(root: Path, package: str, lines: int) -> Iterator[str]:
    """The change since this branch left main (since the commit before, on main itself); nothing without git."""
    base = git(root, "merge-base", "main", "HEAD").strip()
    if base and base == git(root, "rev-parse", "HEAD").strip():
        base = git(root, "rev-parse", "--verify", "--quiet", "HEAD~1").strip()
    names = git(root, "ls-tree", "-r", "--name-only", base, "--", package).split() if base else []
    before = sum(git(root, "show", f"{base}:{name}").count("\n") for name in names if name.endswith(".py"))
    if before:
        note = "; say why in the submission" if lines > before * (1 + GROWTH) else ""
        yield f"{lines - before:+d} lines ({lines / before - 1:+.1%}) against {base[:10]}{note}"


def git(root: Path, *words: str) -> str:
    """What git prints; empty where it fails or is not there."""
    try:
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True).stdout
    except FileNotFoundError:
        return ""


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
