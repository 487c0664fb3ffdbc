"""What `tests.ops.triton` holds every interpreted kernel to: memory that its arguments hold, and no other."""

import pytest
import torch

from tests.ops.triton import INTERPRETER, needs_interpreter

pytestmark = [pytest.mark.torch, needs_interpreter]

if INTERPRETER:
    import triton
    import triton.language as tl
    from triton.runtime.errors import InterpreterError
    from triton.tools.tensor_descriptor import TensorDescriptor

    @triton.jit
    def _copy(source, target, first, n, BLOCK: tl.constexpr):  # noqa: N803
        at = first + tl.arange(0, BLOCK)
        tl.store(target + at, tl.load(source + at, mask=at < n), mask=at < n)

    @triton.jit
    def _count(counts, at, old, SWAP: tl.constexpr):  # noqa: N803
        if SWAP:
            tl.atomic_cas(counts + at, old, old)
        else:
            tl.atomic_add(counts + at, 1)

    @triton.jit
    def _described(described, target, row):
        at = tl.arange(0, 4)[:, None] * 16 + tl.arange(0, 16)[None, :]
        tl.store(target + at, described.load([row, 0]))


def test_what_is_masked_or_inside_is_allowed():
    source, target = torch.arange(20.0), torch.zeros(20)
    _copy[(1,)](source, target, 0, 20, BLOCK=32)
    assert torch.equal(source, target)
    # The storage is what counts: views are cut of it.
    _copy[(1,)](source[4:8], target[4:8], -4, 20, BLOCK=16)


@pytest.mark.parametrize(("first", "n", "does"), [(0, 21, "reads"), (-1, 20, "reads"), (1 << 40, 1 << 41, "reads")])
def test_what_lies_outside_is_not_read(first, n, does):
    with pytest.raises(InterpreterError, match=does):
        _copy[(1,)](torch.zeros(20), torch.zeros(40), first, n, BLOCK=32)


def test_what_lies_outside_is_not_written():
    with pytest.raises(InterpreterError, match="writes"):
        _copy[(1,)](torch.zeros(40), torch.zeros(20), 0, 21, BLOCK=32)


@pytest.mark.parametrize("swap", [True, False])
def test_what_lies_outside_is_not_changed(swap):
    counts = torch.zeros(3, dtype=torch.int32)
    _count[(1,)](counts, 2, 0, SWAP=swap)
    with pytest.raises(InterpreterError, match="changes"):
        _count[(1,)](counts, 3, 0, SWAP=swap)


def test_descriptors_hold_memory_too():
    source, target = torch.arange(128.0).view(8, 16), torch.zeros(4, 16)
    _described[(1,)](TensorDescriptor.from_tensor(source, [4, 16]), target, 2)
    assert torch.equal(target, source[2:6])
