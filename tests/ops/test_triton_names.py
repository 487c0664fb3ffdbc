"""What Triton's compiler gets wrong and its interpreter does not: two names that begin a loop with the same value.

After `b = a` before a loop, `a = b` in it is taken for no change at all, and `a` keeps its first value wherever that
matters (seen with 3.6 and 3.7.1).
"""

import ast
from collections.abc import Iterable
from pathlib import Path

import pytest

import quire

pytestmark = pytest.mark.plain

KERNELS = sorted((Path(quire.__file__).parent / "kernels" / "triton").rglob("*.py"))


def names(target: ast.expr) -> list[ast.expr]:
    return list(target.elts) if isinstance(target, ast.Tuple) else [target]


def copies(nodes: Iterable[ast.AST]) -> set[tuple[str, str]]:
    """The `b = a` among `nodes`."""
    return {
        (left.id, right.id)
        for node in nodes
        if isinstance(node, ast.Assign)
        for target in node.targets
        for left, right in zip(names(target), names(node.value), strict=False)
        if isinstance(left, ast.Name) and isinstance(right, ast.Name)
    }


def twins(function: ast.FunctionDef) -> list[str]:
    """The `b = a` of `function` that precede a loop in which one of both is copied to the other."""
    # Loops of known length are unrolled.
    loops = [
        node for node in ast.walk(function) if isinstance(node, ast.For) and "static" not in ast.unparse(node.iter)
    ]
    inside = {id(node): node for loop in loops for node in ast.walk(loop)}
    again = {frozenset(pair) for pair in copies(inside.values())}
    before = copies(node for node in ast.walk(function) if id(node) not in inside)
    return sorted(f"{a} = {b}" for a, b in before if frozenset((a, b)) in again)


def kernels(source: str) -> list[ast.FunctionDef]:
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    return [node for node in found if any("jit" in ast.unparse(mark) for mark in node.decorator_list)]


@pytest.mark.parametrize("file", KERNELS, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_names_that_a_loop_assigns_begin_with_values_of_their_own(file: Path) -> None:
    assert {kernel.name: twins(kernel) for kernel in kernels(file.read_text()) if twins(kernel)} == {}


def test_twins_are_found() -> None:
    head, body = "@triton.jit\ndef f(x):\n    a, b = load(x)\n    c, d = a, b\n", "        a = c\n        c = load(i)\n"
    source = f"{head}    for i in range(x):\n{body}"
    assert [twins(kernel) for kernel in kernels(source)] == [["c = a"]]
