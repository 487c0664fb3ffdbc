"""Attention to latents and that of encoders on a real GPU: Triton against the reference in float32."""

import dataclasses

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

from quire.ops.attention import KVPages  # noqa: E402
from quire.ops.latent import LatentSpec, latent_attention  # noqa: E402
from quire.ops.ragged import RaggedSpec, ragged_attention  # noqa: E402
from quire.ops.registry import load_providers  # noqa: E402
from quire.ops.samples import dtypes, step_over  # noqa: E402
from tests.models.driver import moved  # noqa: E402

LIMITS = {"float32": 3e-5, "bfloat16": 8e-3}
LENGTHS = [1, 17, 64, 65, 1200, 0, 5000, 300]
TEXTS = [1, 128, 129, 37, 700, 64]


@pytest.fixture(autouse=True)
def kernels():
    load_providers(["triton", "torch_native"])
    torch.manual_seed(0)


def close(got, want, dtype):
    assert torch.isfinite(got).all()
    assert (got.float() - want).norm() <= LIMITS[dtype] * want.norm()


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("heads", [16, 20, 128])
@pytest.mark.parametrize("copies", [1, 40])
def test_latents_equal_the_reference(heads, dtype, copies):
    lengths = LENGTHS * copies
    spec = LatentSpec(heads, 512, 128, 64, 128, 192**-0.5, 1e-6, False, dtype, "cuda", step="decode")
    counts = [-(-n // 64) for n in lengths]
    order = (torch.randperm(sum(counts)) + 1).tolist()
    tables = [[order.pop() for _ in range(count)] for count in counts]
    step = moved(step_over([1] * len(lengths), lengths, tables, 64), torch.device("cuda"))
    pools = [torch.full((sum(counts) + 1, 64, 1, size), torch.nan) for size in (512, 64)]
    for table, length in zip(tables, lengths, strict=True):
        at = torch.arange(length)
        for pool in pools:
            pool[torch.tensor(table, dtype=torch.int64)[at // 64], at % 64] = torch.randn(length, 1, pool.shape[-1])
    pages = KVPages(*(pool.to(dtypes[dtype]).cuda() for pool in pools))
    q = torch.randn(len(lengths), heads, 192).to(dtypes[dtype]).cuda()
    up = (torch.randn(heads, 256, 512) * 512**-0.5).to(dtypes[dtype]).cuda()
    got = latent_attention.providers["triton"].function(q, up, pages, step, spec)
    few = slice(0, len(LENGTHS))
    some = dataclasses.replace(
        step,
        positions=step.positions[few],
        query_start=step.query_start[: len(LENGTHS) + 1],
        seq_lens=step.seq_lens[few],
        groups=(dataclasses.replace(step.groups[0], page_table=step.groups[0].page_table[few]),),
        derived={},
    )
    wide = KVPages(*(pool[: max(map(max, filter(None, tables[few]))) + 1].float() for pool in (pages.k, pages.v)))
    want = latent_attention(q[few].float(), up.float(), wide, some, dataclasses.replace(spec, dtype="float32"))
    assert torch.isfinite(got).all()
    close(got[few], want, dtype)


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("reach", [None, 0, 64])
@pytest.mark.parametrize("size", [(12, 64), (8, 96), (3, 20)])
def test_texts_equal_the_reference(size, reach, dtype):
    spec = RaggedSpec(*size, size[1] ** -0.5, reach, dtype, "cuda")
    step = moved(step_over(TEXTS, TEXTS, [[1] * n for n in TEXTS], 1), torch.device("cuda"))
    q, k, v = (torch.randn(sum(TEXTS), *size).to(dtypes[dtype]).cuda() for _ in range(3))
    got = ragged_attention.providers["triton"].function(q, k, v, step, spec)
    want = ragged_attention(q.float(), k.float(), v.float(), step, dataclasses.replace(spec, dtype="float32"))
    close(got, want, dtype)
