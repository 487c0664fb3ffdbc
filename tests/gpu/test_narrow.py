"""Pages of 8 bits on a real GPU: conversions both ways, attention against the reference, and the whole engine."""

import dataclasses

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

if torch.cuda.is_available():
    from quire.kernels.triton.launch import device_of
    from quire.ops.attention import AttentionSpec, HeadWeights, KVPages, attend, paged_attention, prepare
    from quire.ops.narrow import LARGEST, narrowed, widened
    from quire.ops.registry import load_providers
    from tests.gpu import test_attention as wide
    from tests.gpu.test_engine import generate, prompts
    from tests.ops import triton_narrow

KEPT = ["float8_e4m3fn", "float8_e5m2"]


@pytest.fixture(autouse=True)
def kernels():
    load_providers(["triton", "cudnn", "torch_native"])


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("converts", [False, True])
def test_conversions_give_the_bits_of_the_reference(kept, converts):
    if converts and not device_of(torch.device("cuda", 0)).converts:
        pytest.skip("this GPU has no such instructions")
    dtype = getattr(torch, kept)
    stored = torch.arange(256, dtype=torch.uint8)
    got = triton_narrow.widen(stored.cuda(), dtype, converts).cpu()
    torch.testing.assert_close(got, widened(stored.view(dtype), torch.float16), rtol=0, atol=0, equal_nan=True)
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16).float()
    between = torch.randn(1 << 16, generator=torch.Generator().manual_seed(0)) * LARGEST[dtype] / 2
    x = torch.cat([every, between, between * 2.0**-16])
    want = narrowed(x, dtype, 3.0)
    got = triton_narrow.narrow(x.cuda(), dtype, 3.0, converts).cpu()
    real = ~x.isnan()
    assert torch.equal(got[real], want.view(torch.uint8)[real])
    assert got.view(dtype)[~real].isnan().all()


def close(got, want, most):
    assert torch.equal(got.isnan(), want.isnan())
    got, want = got.float().nan_to_num(), want.float().nan_to_num()
    assert (got - want).norm() <= most * want.norm()


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("extra", [{}, {"window": 200, "soft_cap": 5.0, "norm_eps": None}], ids=["plain", "window"])
@pytest.mark.parametrize("heads", [(16, 8, 128), (14, 2, 64), (8, 8, 80)], ids=str)
@pytest.mark.parametrize("name", ["triton", "cudnn", "torch_native"])
def test_attention_equals_the_reference(name, heads, extra, dtype, kept):
    torch.manual_seed(0)
    # What is stored of the new tokens may differ by a unit in the last place.
    most = 1e-2 if dtype == "bfloat16" else 1e-3
    compared = 0
    for kind, (queries, lengths) in (("decode", wide.DECODE), ("eager", wide.RAGGED), ("prompts", wide.RAGGED)):
        given = {"norm_eps": 1e-6, "rotary_dim": heads[2], "dtype": dtype, "device": "cuda", "step": kind} | extra
        spec = AttentionSpec(*heads, heads[2] ** -0.5, **given)
        step, pages = wide.case(queries, lengths, 64, spec)
        spec = dataclasses.replace(spec, kv_dtype=kept)
        pages = KVPages(pages.k.to(getattr(torch, kept)), pages.v.to(getattr(torch, kept)), 0, 0.5, 1.25)

        def copy(pages=pages):
            return dataclasses.replace(pages, k=pages.k.clone(), v=pages.v.clone())

        angle = torch.rand(5001, spec.rotary_dim // 2).cuda()
        norms = (torch.rand(2, spec.head_dim) + 0.5).to(angle.device, getattr(torch, dtype)) if spec.norm_eps else ()
        weights = HeadWeights(torch.cat([angle.cos(), angle.sin()], -1), *norms)
        qkv = torch.randn(sum(queries), sum(spec.parts) * spec.head_dim).to(angle.device, getattr(torch, dtype))
        for op in (attend, prepare):
            provider = op.providers.get(name)
            if provider is None or provider.refuses(spec):
                continue
            want_pages, got_pages = copy(), copy()
            want = op(qkv, weights, want_pages, step, spec)
            close(provider.function(qkv, weights, got_pages, step, spec), want, most)
            close(got_pages.k, want_pages.k, most)
            close(got_pages.v, want_pages.v, 0.0)
            compared += 1
        provider = paged_attention.providers[name]
        if provider.refuses(spec):
            continue
        q = torch.randn(sum(queries), spec.heads, spec.head_dim).to(qkv.device, qkv.dtype)
        exact = dataclasses.replace(spec, dtype="float32")
        want = paged_attention(q.float(), pages, step, exact)
        close(provider.function(q, pages, step, spec), want, wide.LIMITS[dtype])
        compared += 1
    if not compared:
        pytest.skip("refused")


@pytest.mark.parametrize("rows", [1, 2, 16, 64, 300])
def test_every_size_of_batch_equals_the_reference(rows):
    torch.manual_seed(0)
    qkv, weights, pages, step, spec = wide.decoding(rows, torch.randint(1, 3000, (rows,)).tolist(), 64)
    spec = dataclasses.replace(spec, kv_dtype=KEPT[0])
    pages = KVPages(*(pool.to(torch.float8_e4m3fn) for pool in (pages.k, pages.v)), 0, 0.5, 1.25)
    got = attend.providers["triton"].function(qkv, weights, pages, step, spec)
    close(got, attend(qkv, weights, pages, step, spec), 1e-2)


@pytest.mark.parametrize("kept", [None, *KEPT])
@pytest.mark.parametrize(
    ("heads", "page_size"), [((12, 1, 128), 16), ((32, 1, 128), 64), ((48, 1, 64), 16), ((24, 2, 256), 64)], ids=str
)
def test_many_query_heads_of_a_kv_head_in_large_batches(heads, page_size, kept):
    torch.manual_seed(0)
    lengths = [0, *torch.randint(1, 900, (69,)).tolist()]
    spec = AttentionSpec(*heads, heads[2] ** -0.5, heads[2], dtype="bfloat16", device="cuda", step="decode")
    step, pages = wide.case([1] * 70, lengths, page_size, spec)
    if kept:
        spec = dataclasses.replace(spec, kv_dtype=kept)
        pages = KVPages(*(pool.to(getattr(torch, kept)) for pool in (pages.k, pages.v)), 0, 0.5, 1.25)
    weights = HeadWeights(torch.rand(901, spec.rotary_dim).cuda())
    qkv = torch.randn(70, sum(spec.parts) * spec.head_dim).to(torch.bfloat16).cuda()
    got = attend.providers["triton"].function(qkv, weights, pages, step, spec)
    close(got, attend(qkv, weights, pages, step, spec), 1e-2)


@pytest.mark.parametrize("kept", ["fp8", "fp8_e5m2"])
def test_the_engine_gives_the_reference_tokens(kept):
    # Where a key lies between two values of 8 bits, other kernels may take the other one: some texts may part.
    expected, _ = generate(prompts(48), kernels="reference", enforce_eager=True, kv_cache_dtype=kept)
    for settings in ({}, {"max_num_batched_tokens": 96, "max_num_seqs": 64, "enable_prefix_caching": False}):
        tokens, _ = generate(prompts(48), kv_cache_dtype=kept, **settings)
        assert sum(a == b for a, b in zip(tokens, expected, strict=True)) >= 44
