"""Which kernels an attention layer takes for decoding, for few tokens each and for prompts."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from quire.checkpoint.rope import RopeFacts
from quire.layers.attention import Attention, AttentionPlan
from quire.layers.build import Build
from quire.ops.attention import AttentionSpec, attend, paged_attention, prepare
from quire.ops.registry import Op, provide
from quire.ops.samples import step_over
from quire.parallel.mesh import Mesh

pytestmark = pytest.mark.torch
HEADS, DIM = 2, 4


@pytest.fixture
def offer() -> Iterator[Callable[..., None]]:
    """offer(name, op, *steps): provider `name` has `op` for these classes of steps."""
    offered: list[tuple[Op, str]] = []

    def add(name: str, op: Op, *steps: str) -> None:
        def refuses(spec: AttentionSpec) -> str | None:
            return None if spec.step in steps else "other steps only"

        provide(name, op, refuses)(lambda *args: calls.append(f"{name}.{op.name}") or op.reference(*args))
        offered.append((op, name))

    calls.clear()
    yield add
    for op, name in offered:
        del op.providers[name]


calls: list[str] = []
ALL = ("decode", "ragged", "eager")


def ran(providers: list[str], queries: list[int], lengths: list[int]) -> list[str]:
    """The providers' ops that a layer runs for a step."""
    build = Build(Mesh(), torch.float32, torch.device("cpu"), providers)
    rope = RopeFacts(kind="default", rope_theta=10000.0, max_positions=512)
    layer = Attention(build, AttentionPlan(hidden=8, heads=HEADS, kv_heads=1, head_dim=DIM, rope=rope))
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    layer.state.bind(*(pool.zero_() for pool in layer.state.allocate(20, 64)), 0)
    tables: list[list[int]] = [[2 * i + 1, 2 * i + 2] for i in range(len(lengths))]
    out: Any = layer.forward(torch.randn(sum(queries), 8), step_over(queries, lengths, tables, 64))
    assert out.isfinite().all()
    found = list(calls)
    calls.clear()
    return found


def test_a_whole_block_wins_unless_a_better_provider_has_a_half(offer: Callable[..., None]) -> None:
    offer("long", paged_attention, "eager")
    offer("main", paged_attention, *ALL)
    offer("main", prepare, *ALL)
    offer("main", attend, "decode")
    offer("plain", attend, *ALL)
    order = ["long", "main", "plain"]
    assert ran(order, [1, 1], [3, 70]) == ["main.attend"]
    assert ran(order, [2, 1], [3, 70]) == ["main.prepare", "main.paged_attention"]
    assert ran(order, [100], [100]) == ["main.prepare", "long.paged_attention"]
    assert ran(["plain"], [100], [100]) == ["plain.attend"]
    assert ran(["plain", "main"], [1], [3]) == ["plain.attend"]


def test_many_short_chunks_are_no_prompt(offer: Callable[..., None]) -> None:
    offer("long", paged_attention, "eager")
    offer("short", paged_attention, "ragged")
    order = ["long", "short"]
    assert ran(order, [90] + [1] * 3, [90, 5, 6, 7]) == ["short.paged_attention"]
    assert ran(order, [126, 2], [126, 100]) == ["long.paged_attention"]
