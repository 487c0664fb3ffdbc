"""Where a checkpoint keeps the matrices of experts: one tensor for each, or one for all in several arrangements.

Whatever the arrangement, parameters are (experts * 2 * inner, hidden), every expert's gate before its up, and
(experts * hidden, inner). Used by `moe.py` only.
"""

from typing import Literal, Protocol

from quire.layers.build import Build
from quire.loading.recipe import Part, Weight

Arrangement = Literal["single", "turned", "woven"]
"""Of the tensors: one per expert and matrix (or transformers' own stack of those), which is how most are published;
all experts in one as (experts, inputs, outputs), gates before ups (Llama 4); the same with gates and ups in turns
(gpt-oss).
"""


class Sizes(Protocol):
    """What of a plan counts here: sizes over all ranks."""

    @property
    def firsts(self) -> int:
        """Matrices of an expert's first product: gate and up, or up alone."""
        ...

    @property
    def hidden(self) -> int:
        """Values of a token."""
        ...

    @property
    def inner(self) -> int:
        """Values between an expert's products."""
        ...

    @property
    def experts(self) -> int:
        """How many there are."""
        ...

    @property
    def fused(self) -> tuple[str, str]:
        """Tensors of gates and ups, and of downs, of all experts."""
        ...

    @property
    def names(self) -> tuple[str, str, str]:
        """Modules of gate, up and down, where each expert has its own."""
        ...


def matrices(b: Build, plan: Sizes, arrangement: Arrangement) -> tuple[Weight, Weight]:
    """The parameters of gate and up, and of down. `b` stands above the experts' names."""
    if b.holds("gate_proj.weight"):
        return b.experts(plan.firsts * plan.experts, _stacks(plan)), b.experts(plan.experts, [_down_stack(plan)])
    # Whoever quantizes experts one by one leaves them so.
    if arrangement == "single" or b.quantizes(_down(plan)[0]):
        first = b.experts(plan.firsts * plan.experts, _gate_up(plan), _fused_gate_up(plan))
        return first, b.experts(plan.experts, _down(plan), _fused_down(plan))
    if b.holds("gate_up_proj_blocks"):
        first = b.experts(2 * plan.experts, _woven_blocks(plan, b.mesh.size))
        return first, b.experts(plan.experts, _fused_down(plan))
    parts = _woven(plan, b.mesh.size) if arrangement == "woven" else _turned(plan)
    shape = (plan.hidden, plan.experts * plan.inner)
    columns = [(i * plan.inner, plan.inner) for i in range(plan.experts)]
    second = [Part("down_proj", shape, 1, stacked=True, transposed=True, columns=c) for c in columns]
    return b.experts(2 * plan.experts, parts), b.experts(plan.experts, second)


def biases(b: Build, plan: Sizes) -> tuple[Weight, Weight]:
    """The parameters of the biases of gate and up, woven, and of down, which rank 0 alone adds."""
    width, half = 2 * plan.inner, _halves(plan, b.mesh.size)
    shape = (plan.experts * width,)
    parts = [
        Part("gate_up_proj_bias", shape, 0, first=i * width, rows=width, stacked=True, halves=half)
        for i in range(plan.experts)
    ]
    return b.weight(*parts), b.weight(Part("down_proj_bias", (plan.experts * plan.hidden,), once=True, stacked=True))


def _gate_up(plan: Sizes) -> list[Part]:
    """One tensor per expert and matrix, as checkpoints are published."""
    shape, names = (plan.inner, plan.hidden), plan.names[2 - plan.firsts : 2]
    return [Part(f"{i}.{name}.weight", shape, 0) for i in range(plan.experts) for name in names]


def _down(plan: Sizes) -> list[Part]:
    return [Part(f"{i}.{plan.names[2]}.weight", (plan.hidden, plan.inner), 1) for i in range(plan.experts)]


def _fused_gate_up(plan: Sizes) -> tuple[Part, ...]:
    """One tensor for all experts, (experts, firsts * inner, hidden), as transformers holds them."""
    inner, count = plan.inner, plan.firsts * plan.experts
    shape = (count * inner, plan.hidden)
    return tuple(Part(plan.fused[0], shape, 0, first=i * inner, rows=inner, stacked=True) for i in range(count))


def _fused_down(plan: Sizes) -> tuple[Part, ...]:
    return (Part(plan.fused[1], (plan.experts * plan.hidden, plan.inner), 1, stacked=True),)


def _stacks(plan: Sizes) -> list[Part]:
    """One tensor for the gates of all experts and one for their ups, as GGUF has them."""
    shape, inner, names = (plan.experts * plan.inner, plan.hidden), plan.inner, plan.names[2 - plan.firsts : 2]
    return [
        Part(f"{name}.weight", shape, 0, first=i * inner, rows=inner) for i in range(plan.experts) for name in names
    ]


def _down_stack(plan: Sizes) -> Part:
    return Part(f"{plan.names[2]}.weight", (plan.experts * plan.hidden, plan.inner), 1)


def _turned(plan: Sizes) -> list[Part]:
    """(experts, hidden, 2 * inner), gates before ups."""
    shape, inner = (2 * plan.inner, plan.experts * plan.hidden), plan.inner
    columns = [(i * plan.hidden, plan.hidden) for i in range(plan.experts)]
    return [
        Part("gate_up_proj", shape, 0, first=first, rows=inner, stacked=True, transposed=True, columns=c)
        for c in columns
        for first in (0, inner)
    ]


def _woven(plan: Sizes, ranks: int) -> list[Part]:
    """(experts, hidden, 2 * inner), gates and ups in turns."""
    shape, half = (2 * plan.inner, plan.experts * plan.hidden), _halves(plan, ranks)
    columns = [(i * plan.hidden, plan.hidden) for i in range(plan.experts)]
    return [Part("gate_up_proj", shape, 0, stacked=True, transposed=True, columns=c, halves=half) for c in columns]


def _woven_blocks(plan: Sizes, ranks: int) -> list[Part]:
    """(experts, 2 * inner, hidden) in blocks of MXFP4, gates and ups in turns."""
    width, half = 2 * plan.inner, _halves(plan, ranks)
    shape = (plan.experts * width, plan.hidden)
    return [
        Part("gate_up_proj", shape, 0, first=i * width, rows=width, stacked=True, halves=half)
        for i in range(plan.experts)
    ]


def _halves(plan: Sizes, ranks: int) -> tuple[int, int]:
    """A rank's share of an expert's gates and ups, seen as pairs."""
    width = 2 * plan.inner // ranks
    return width, width
