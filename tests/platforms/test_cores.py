"""Which processors the threads of the CPU kernels run on."""

import contextlib
import os
import sys
from pathlib import Path

import pytest

from quire.platforms import cores, native

pytestmark = pytest.mark.plain


def machine(root: Path, siblings: dict[int, str], nodes: dict[int, int]) -> Path:
    """A description of processors like /sys has it."""
    for cpu, text in siblings.items():
        (root / f"cpu/cpu{cpu}/topology").mkdir(parents=True)
        (root / f"cpu/cpu{cpu}/topology/thread_siblings_list").write_text(text + "\n")
        if cpu in nodes:
            (root / f"cpu/cpu{cpu}/node{nodes[cpu]}").mkdir()
    return root


def test_one_processor_of_each_core_by_node(tmp_path: Path) -> None:
    pairs = {cpu: f"{cpu % 4},{cpu % 4 + 4}" for cpu in range(8)}
    root = machine(tmp_path, pairs, {cpu: cpu % 2 for cpu in range(8)})
    assert cores.physical(root, frozenset(range(8))) == [[0, 2], [1, 3]]
    assert cores.physical(root, frozenset({4, 5, 1})) == [[4], [1]]


def test_what_is_not_described_is_a_core_of_its_own(tmp_path: Path) -> None:
    assert cores.physical(tmp_path, frozenset({0, 3})) == [[0, 3]]
    assert cores.physical(tmp_path, frozenset()) == []


def test_lists_of_numbers() -> None:
    assert cores.parse("0-3,8,10-11\n") == frozenset({0, 1, 2, 3, 8, 10, 11})
    assert cores.parse("\n") == frozenset()


def test_this_machine() -> None:
    assert all(node for node in cores.physical())


@pytest.mark.skipif(
    sys.platform != "linux" or not native.is_built(), reason="asks /proc where compiled threads may run"
)
def test_threads_of_the_kernels_stay_on_the_node_that_is_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (sorted(os.sched_getaffinity(0)) * 2)[:2]
    if first == second:
        pytest.skip("this process may use one processor only")
    before = places()
    assert {second} not in before
    monkeypatch.setattr(cores, "physical", lambda: [[first], [second]])
    try:
        assert native.set_threads(2) == 2
        assert {second} in places()
    finally:
        monkeypatch.undo()
        native.set_threads(2)
        native.set_threads(1)


def places() -> list[set[int]]:
    """Where each thread of this process may run."""
    found = []
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            found.append(os.sched_getaffinity(int(thread.name)))
    return found
