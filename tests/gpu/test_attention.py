"""Attention on a real GPU: every provider against the reference in float32, with NaN wherever nothing may be read."""

import dataclasses

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

from quire.ops.attention import AttentionSpec, HeadWeights, KVPages, attend, paged_attention, prepare  # noqa: E402
from quire.ops.registry import load_providers  # noqa: E402
from quire.ops.samples import dtypes, step_over  # noqa: E402


@pytest.fixture(autouse=True)
def kernels():
    load_providers(["triton", "cudnn", "torch_native"])


LIMITS = {"float32": 3e-5, "bfloat16": 8e-3, "float16": 2e-3}
DECODE = [1] * 9, [1, 2, 17, 128, 129, 1200, 5000, 0, 300]
RAGGED = [1, 300, 64, 1, 129, 37, 2], [700, 300, 1000, 1, 140, 37, 4000]
HEADS = (16, 8, 128), (32, 8, 64), (14, 2, 64), (8, 8, 80), (4, 2, 96), (8, 1, 256)
EXTRA = {}, {"window": 200}, {"soft_cap": 5.0, "window": 37, "norm_eps": None}


def case(queries, lengths, page_size, spec):
    """A step on the GPU over shuffled pages, and pools in which everything that may not be read is NaN."""
    counts = [-(-n // page_size) for n in lengths]
    order = (torch.randperm(sum(counts)) + 1).tolist()
    tables = [[order.pop() for _ in range(count)] for count in counts]
    step = step_over(queries, lengths, tables, page_size)
    pools = [
        torch.full((sum(counts) + 1, page_size, spec.kv_heads, spec.head_dim), torch.nan, dtype=dtypes[spec.dtype])
        for _ in range(2)
    ]
    for table, query, length in zip(tables, queries, lengths, strict=True):
        first = spec.retention.first_needed(max(0, length - query))
        at = torch.arange(first, length)
        where = torch.tensor(table, dtype=torch.int64)[at // page_size], at % page_size
        for pool in pools:
            pool[where] = torch.randn(len(at), spec.kv_heads, spec.head_dim).to(pool.dtype)
    group = step.groups[0]
    group = dataclasses.replace(group, page_table=group.page_table.cuda(), slots=group.slots.cuda())
    moved = {name: getattr(step, name).cuda() for name in ("token_ids", "positions", "query_start", "seq_lens")}
    return dataclasses.replace(step, **moved, groups=(group,), derived={}), KVPages(*(p.cuda() for p in pools))


def wide(value):
    """Tensors of a dataclass in float32; copies."""
    return type(value)(*(x.float().clone() if isinstance(x, torch.Tensor) else x for x in value_fields(value)))


def value_fields(value):
    return [getattr(value, field.name) for field in dataclasses.fields(value)]


def assert_close(got, want, spec):
    assert torch.equal(got.isnan(), want.isnan())
    got, want = got.float().nan_to_num(), want.float().nan_to_num()
    assert (got - want).norm() <= LIMITS[spec.dtype] * want.norm()


@pytest.mark.parametrize("page_size", [16, 64])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("extra", EXTRA, ids=["plain", "window", "cap"])
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("name", ["triton", "cudnn", "torch_native"])
def test_providers_equal_the_reference(name, heads, extra, dtype, page_size):
    torch.manual_seed(0)
    compared = 0
    for kind, (queries, lengths) in (("decode", DECODE), ("eager", RAGGED), ("prompts", RAGGED)):
        given = {"norm_eps": 1e-6, "rotary_dim": heads[2], "dtype": dtype, "device": "cuda", "step": kind} | extra
        spec = AttentionSpec(*heads, heads[2] ** -0.5, **given)
        exact = dataclasses.replace(spec, dtype="float32")
        step, pages = case(queries, lengths, page_size, spec)
        angle = torch.rand(5001, spec.rotary_dim // 2).cuda()
        norms = (torch.rand(2, spec.head_dim) + 0.5).to(dtypes[dtype]).cuda() if spec.norm_eps else (None, None)
        weights = HeadWeights(torch.cat([angle.cos(), angle.sin()], -1), *norms)
        qkv = torch.randn(sum(queries), sum(spec.parts) * spec.head_dim).to(dtypes[dtype]).cuda()
        for op in (attend, prepare):
            provider = op.providers.get(name)
            if provider is None or provider.refuses(spec):
                continue
            want_pages, got_pages = wide(pages), KVPages(pages.k.clone(), pages.v.clone())
            want = op(qkv.float(), wide(weights), want_pages, step, exact)
            assert_close(provider.function(qkv, weights, got_pages, step, spec), want, spec)
            assert_close(got_pages.k, want_pages.k, spec)
            assert_close(got_pages.v, want_pages.v, spec)
            compared += 1
        provider = paged_attention.providers[name]
        if not provider.refuses(spec):
            q = torch.randn(sum(queries), spec.heads, spec.head_dim).to(dtypes[dtype]).cuda()
            want = paged_attention(q.float(), wide(pages), step, exact)
            assert_close(provider.function(q, pages, step, spec), want, spec)
            compared += 1
    if not compared:
        pytest.skip("refused")


@pytest.mark.parametrize("extra", [{"sinks": True, "window": 128}, {"sinks": True}, {"chunk": 300}], ids=str)
@pytest.mark.parametrize("heads", [(64, 8, 64), (40, 8, 128)], ids=str)
def test_sinks_and_chunks_equal_the_reference(heads, extra):
    torch.manual_seed(0)
    for kind, (queries, lengths) in (("decode", DECODE), ("eager", RAGGED), ("prompts", RAGGED)):
        given = {"rotary_dim": heads[2], "dtype": "bfloat16", "device": "cuda", "step": kind} | extra
        spec = AttentionSpec(*heads, heads[2] ** -0.5, **given)
        step, pages = case(queries, lengths, 64, spec)
        sinks = torch.randn(spec.heads).bfloat16().cuda() if spec.sinks else None
        weights = HeadWeights(torch.rand(5001, spec.rotary_dim).cuda(), None, None, sinks)
        qkv = torch.randn(sum(queries), sum(spec.parts) * spec.head_dim).bfloat16().cuda()
        exact, wide_pages = dataclasses.replace(spec, dtype="float32"), wide(pages)
        want = attend(qkv.float(), wide(weights), wide_pages, step, exact)
        if kind == "decode":
            got = attend.providers["triton"].function(qkv, weights, pages, step, spec)
        else:
            q = prepare.providers["triton"].function(qkv, weights, pages, step, spec)
            more = (sinks,) if spec.sinks else ()
            got = paged_attention.providers["triton"].function(q, pages, step, spec, *more).flatten(1)
        assert_close(got, want, spec)


def decoding(rows, lengths, page_size=16):
    """Arguments of a decode step with 32 query heads on 8 KV heads, in bfloat16."""
    spec = AttentionSpec(32, 8, 128, 128**-0.5, 128, dtype="bfloat16", device="cuda", step="decode")
    step, pages = case([1] * rows, lengths, page_size, spec)
    qkv = torch.randn(rows, sum(spec.parts) * 128).to(torch.bfloat16).cuda()
    return [qkv, HeadWeights(torch.rand(max(lengths) + 1, 128).cuda()), pages, step, spec]


@pytest.mark.parametrize("rows", [1, 2, 4, 16, 64, 300])
def test_every_size_of_batch_equals_the_reference(rows):
    torch.manual_seed(0)
    arguments = decoding(rows, torch.randint(1, 3000, (rows,)).tolist(), 64)
    got = attend.providers["triton"].function(*arguments)
    assert_close(got, attend(*arguments), arguments[-1])


@pytest.mark.parametrize("rows", [2, 7, 64])
def test_a_row_does_not_depend_on_what_its_batch_mates_hold(rows):
    """Small batches are cut by length alone: not a bit may change. Large ones are cut where runs end: rounding may."""
    torch.manual_seed(0)
    arguments = decoding(rows, [1777, *torch.randint(1, 4000, (rows - 1,)).tolist()])
    step = arguments[3]
    lengths = step.seq_lens.clone()
    lengths[1:] = lengths[1:].clamp(max=200)
    others = [*arguments[:3], dataclasses.replace(step, seq_lens=lengths, derived={}), arguments[4]]
    function = attend.providers["triton"].function
    expected = function(*arguments)[:1]
    for _ in range(20):
        got = function(*others)[:1]
        assert_close(got, expected, arguments[4])
        assert rows == 64 or torch.equal(got, expected)


@pytest.mark.parametrize("tile", [32, 64])
def test_prompts_by_the_copy_engine(tile, monkeypatch):
    from quire.kernels.triton.attention import prefill

    torch.manual_seed(0)
    monkeypatch.setattr(prefill, "shape_of", lambda dim, dtype, lines, engine: prefill.Shape(64, tile, 2, 4, bulk=True))
    monkeypatch.setattr(prefill, "COPIED", tile)
    for window, cap in ((None, None), (200, None), (None, 5.0)):
        spec = AttentionSpec(32, 8, 128, 0.1, 128, dtype="bfloat16", device="cuda", window=window, soft_cap=cap)
        step, pages = case(*RAGGED, 64, spec)
        q = torch.randn(sum(RAGGED[0]), 32, 128).to(torch.bfloat16).cuda()
        want = paged_attention(q.float(), wide(pages), step, dataclasses.replace(spec, dtype="float32"))
        assert_close(paged_attention.providers["triton"].function(q, pages, step, spec), want, spec)
