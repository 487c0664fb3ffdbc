"""Physical cores that this process may run on, by NUMA node. Linux tells in /sys; elsewhere nothing is known.

Called by `native`, which places the threads of the CPU kernels.
"""

import os
from pathlib import Path

SYS = Path("/sys/devices/system")


def physical(root: Path = SYS, allowed: frozenset[int] | None = None) -> list[list[int]]:
    """One processor of each core, the nodes apart and in order; empty where it cannot be told.

    Args:
        root: where the system describes its processors.
        allowed: processors that may be used; those of this process unless given.
    """
    if allowed is None:
        try:
            allowed = frozenset(os.sched_getaffinity(0))
        except (AttributeError, OSError):
            return []
    nodes: dict[int, list[int]] = {}
    taken: set[frozenset[int]] = set()
    for cpu in sorted(allowed):
        core = _core(root, cpu) & allowed
        if core not in taken:
            taken.add(core)
            nodes.setdefault(_node(root, cpu), []).append(cpu)
    return [nodes[number] for number in sorted(nodes)]


def _core(root: Path, cpu: int) -> frozenset[int]:
    """All processors of the core that `cpu` belongs to."""
    path = root / f"cpu/cpu{cpu}/topology/thread_siblings_list"
    return parse(path.read_text()) if path.exists() else frozenset({cpu})


def _node(root: Path, cpu: int) -> int:
    found = (root / f"cpu/cpu{cpu}").glob("node[0-9]*")
    return next((int(path.name.removeprefix("node")) for path in found), 0)


def parse(text: str) -> frozenset[int]:
    """The kernel's lists of numbers: "0-3,8,10-11"."""
    ranges = (part.partition("-") for part in text.strip().split(",") if part)
    return frozenset(n for first, _, last in ranges for n in range(int(first), int(last or first) + 1))
