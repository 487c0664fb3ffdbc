"""Sequences that begin with the same pages, on a real GPU: read once for all of them, and equal to the reference."""

import dataclasses

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

from quire.ops.attention import AttentionSpec, HeadWeights, KVPages, attend  # noqa: E402
from quire.ops.registry import load_providers  # noqa: E402
from quire.ops.samples import dtypes, step_over  # noqa: E402
from quire.ops.step import SharedInputs  # noqa: E402

LIMITS = {"float32": 3e-5, "bfloat16": 8e-3}
HEADS = (16, 8, 128), (32, 4, 128), (14, 2, 64), (8, 8, 80), (8, 1, 256)


@pytest.fixture(autouse=True)
def kernels():
    load_providers(["triton"])


def case(lengths, page_size, alike, spec):
    """A decode step on the GPU; whatever nobody needs to read is NaN: other slots, and in the tables of all but the
    first of those who begin alike the pages that they share."""
    counts = [-(-n // page_size) for n in lengths]
    order = (torch.randperm(sum(counts)) + 2).tolist()
    tables = [[order.pop() for _ in range(count)] for count in counts]
    for members, count in alike:
        for row in members:
            tables[row][:count] = tables[members[0]][:count]
    step = step_over([1] * len(lengths), lengths, tables, page_size, alike)
    shape = (sum(counts) + 2, page_size, spec.kv_heads, spec.head_dim)
    pools = [torch.full(shape, torch.nan, device="cuda") for _ in range(2)]
    for table, length in zip(tables, lengths, strict=True):
        for at in range(0, length, page_size):
            for pool in pools:
                here = min(page_size, length - at)
                pool[table[at // page_size], :here] = torch.randn(here, *shape[2:], device="cuda")
    moved = {name: getattr(step, name).cuda() for name in ("token_ids", "positions", "query_start", "seq_lens")}
    (group,) = step.groups
    shared = SharedInputs(group.shared.number.cuda(), group.shared.tokens.cuda())
    group = dataclasses.replace(group, page_table=group.page_table.cuda(), slots=group.slots.cuda(), shared=shared)
    table = group.page_table.clone()
    for members, count in alike:
        table[sorted(members)[1:], :count] = 1
    whole = dataclasses.replace(step, **moved, groups=(group,), derived={})
    once = dataclasses.replace(whole, groups=(dataclasses.replace(group, page_table=table),), derived={})
    return whole, once, KVPages(*(pool.to(dtypes[spec.dtype]) for pool in pools))


def compare(lengths, page_size, alike, spec):
    whole, once, pages = case(lengths, page_size, alike, spec)
    angle = torch.rand(max(lengths) + 1, spec.rotary_dim // 2).cuda()
    norms = (torch.rand(2, spec.head_dim) + 0.5).to(dtypes[spec.dtype]).cuda() if spec.norm_eps else (None, None)
    weights = HeadWeights(torch.cat([angle.cos(), angle.sin()], -1), *norms)
    wide = HeadWeights(weights.table, *(None if norm is None else norm.float() for norm in norms))
    qkv = torch.randn(len(lengths), sum(spec.parts) * spec.head_dim).to(dtypes[spec.dtype]).cuda()
    want_pages = KVPages(pages.k.float(), pages.v.float())
    want = attend(qkv.float(), wide, want_pages, whole, dataclasses.replace(spec, dtype="float32"))
    for _ in range(2):  # the second time on what the first one left in the shared memory for parts
        got = attend.providers["triton"].function(qkv, weights, pages, once, spec).float()
        assert (got - want).norm() <= LIMITS[spec.dtype] * want.norm()
        assert ((got - want).abs().amax(1) <= 20 * LIMITS[spec.dtype] * want.abs().amax(1)).all()


@pytest.mark.parametrize("page_size", [16, 64])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("extra", [{}, {"soft_cap": 5.0, "norm_eps": None}], ids=["plain", "cap"])
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_equals_the_reference(heads, extra, dtype, page_size):
    torch.manual_seed(0)
    given = {"norm_eps": 1e-6, "rotary_dim": heads[2], "dtype": dtype, "device": "cuda", "step": "decode"} | extra
    spec = AttentionSpec(*heads, heads[2] ** -0.5, **given)
    lengths = [1300, 1025, 0, 2000, 777, 400, 1400, 321, 1, 400]
    small = 64 // page_size
    compare(lengths, page_size, (([6, 0, 1, 3], 16 * small), ([5, 7], 5 * small)), spec)


@pytest.mark.parametrize(("rows", "groups"), [(4, 1), (33, 2), (70, 1), (256, 40), (300, 1), (600, 3)])
def test_every_size_of_batch_equals_the_reference(rows, groups):
    torch.manual_seed(0)
    spec = AttentionSpec(16, 8, 128, 128**-0.5, 128, dtype="bfloat16", device="cuda", step="decode")
    lengths = (torch.randint(1, 100, (rows,)) + 320).tolist()
    alike = tuple((list(range(i, rows, groups)), 1 + i % 5) for i in range(groups))
    compare(lengths, 64, alike, spec)
