"""Attention of the compiled CPU kernels on drawn shapes, for each set of instructions there is here."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quire.ops.attention import AttentionSpec, HeadWeights, KVPages, attend
from quire.ops.registry import load_providers
from quire.ops.samples import normal, step_over
from quire.ops.step import StepInputs
from tests.marks import needs_native

pytestmark = [
    pytest.mark.torch,
    needs_native,
]
LONGEST = 1100
ANGLES = torch.arange(LONGEST)[:, None] * (1.0 / 10 ** torch.linspace(0, 3, 64))


@st.composite
def specs(draw: st.DrawFn) -> AttentionSpec:
    kv_heads, group = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3, 4, 7]))
    head_dim = 2 * draw(st.sampled_from([1, 4, 5, 8, 15, 16, 32, 40, 48, 64]))
    return AttentionSpec(
        heads=kv_heads * group,
        kv_heads=kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rotary_dim=2 * draw(st.integers(1, head_dim // 2)),
        window=draw(st.none() | st.integers(1, 600)),
        soft_cap=draw(st.none() | st.just(2.0)),
        norm_eps=draw(st.none() | st.just(1e-6)),
        dtype=draw(st.sampled_from(["float32", "bfloat16"])),
        batch_invariant=draw(st.booleans()),
    )


@st.composite
def steps(draw: st.DrawFn) -> tuple[StepInputs, int]:
    """A step whose sequences may begin with the same pages, and how many pages there are."""
    page_size = draw(st.sampled_from([1, 3, 16, 64, 512]))
    shared = draw(st.sampled_from([0, 0, 1, 2, 3])) * 256 // page_size
    common, count = list(range(1, shared + 1)), shared + 1
    queries, lengths, tables = [], [], []
    for _ in range(draw(st.integers(1, 6))):
        query = draw(st.sampled_from([1, 1, 1, 2, 9, 70, 300]))
        past = draw(st.sampled_from([0, 5, 255, 256, 511, 600]))
        # New tokens stand behind the pages that are shared.
        past = max(past, shared * page_size) if draw(st.booleans()) else past
        own = past < shared * page_size
        if past + query > LONGEST:
            query = 1
        pages = -(-(past + query) // page_size) - (0 if own else shared)
        tables.append([*([] if own else common), *range(count, count + pages)])
        count += pages
        queries.append(query)
        lengths.append(past + query)
    if draw(st.booleans()):  # padding
        queries, lengths, tables = [*queries, 1], [*lengths, 0], [*tables, []]
    return step_over(queries, lengths, tables, page_size), count


def case(spec: AttentionSpec, step: StepInputs, pages: int) -> tuple[torch.Tensor, HeadWeights, KVPages]:
    """Tensors for it. Keys and values are where the tables say, NaN elsewhere in the pool's last page."""
    shape = pages + 1, step.groups[0].page_size, spec.kv_heads, spec.head_dim
    pools = [normal(spec.dtype, *shape, seed=seed) for seed in (1, 2)]
    for pool in pools:
        pool[-1] = torch.nan
    half = ANGLES[:, : spec.rotary_dim // 2]
    norms = [1 + normal(spec.dtype, spec.head_dim, seed=s) / 4 if spec.norm_eps else None for s in (3, 4)]
    qkv = normal(spec.dtype, len(step.positions), sum(spec.parts) * spec.head_dim, seed=5)
    return qkv, HeadWeights(torch.cat([half.cos(), half.sin()], -1), *norms), KVPages(*pools)


@given(spec=specs(), planned=steps())
def test_any_step(instructions: str, spec: AttentionSpec, planned: tuple[StepInputs, int]) -> None:
    step, count = planned
    qkv, weights, pages = case(spec, step, count)
    wide = replace(spec, dtype="float32")
    norms = (None if w is None else w.float() for w in (weights.q_norm, weights.k_norm))
    kept = KVPages(pages.k.float(), pages.v.float())
    want = attend.reference(qkv.float(), HeadWeights(weights.table, *norms), kept, step, wide)
    got = attend.providers["cpu"].function(qkv, weights, pages, step, spec)
    close = {"rtol": 1e-4, "atol": 2e-5} if spec.dtype == "float32" else {"rtol": 2e-2, "atol": 4e-2}
    torch.testing.assert_close(got.float(), want, **close)
    used = step.groups[0].slots[step.seq_lens.repeat_interleave(step.query_start.diff()) > 0]
    for pool, meant in ((pages.k, kept.k), (pages.v, kept.v)):
        written = [p.flatten(0, 1)[used].float() for p in (pool, meant)]
        torch.testing.assert_close(*written, rtol=close["rtol"], atol=1e-5)


def test_a_chunk_that_sequences_share_is_the_same_for_each(instructions: str) -> None:
    # Whoever reads a chunk beside others gets what it gets alone, up to rounding.
    spec = AttentionSpec(4, 2, 64, 0.125, 64, dtype="float32")
    tables = [[*range(1, 33), 40 + i] for i in range(5)]
    step = step_over([1] * 5, [513] * 5, tables, 16)
    qkv, weights, pages = case(spec, step, 50)
    together = attend.providers["cpu"].function(qkv, weights, pages, step, spec)
    for i in range(5):
        alone = step_over([1], [513], [tables[i]], 16)
        one = attend.providers["cpu"].function(qkv[i : i + 1], weights, pages, alone, spec)
        torch.testing.assert_close(one, together[i : i + 1], rtol=1e-5, atol=1e-6)


def test_how_prompts_are_cut_changes_nothing_but_rounding(instructions: str) -> None:
    spec = AttentionSpec(2, 1, 32, 0.2, 32, dtype="float32")
    table = [list(range(1, 60))]
    whole = step_over([900], [900], table, 16)
    qkv, weights, pages = case(spec, whole, 60)
    want = attend.providers["cpu"].function(qkv, weights, pages, whole, spec)
    made = []
    for first in range(0, 900, 225):
        step = step_over([225], [first + 225], table, 16)
        made.append(attend.providers["cpu"].function(qkv[first : first + 225], weights, pages, step, spec))
    torch.testing.assert_close(torch.cat(made), want, rtol=1e-5, atol=1e-6)


def test_a_number_that_is_none_is_handed_on(instructions: str) -> None:
    for dtype in ("float32", "bfloat16"):
        spec = AttentionSpec(2, 1, 16, 0.25, 16, dtype=dtype)
        step = step_over([1, 1, 3], [5, 300, 3], [[1], list(range(2, 21)), [21]], 16)
        qkv, weights, pages = case(spec, step, 22)
        qkv[1, 3] = torch.nan
        made = attend.providers["cpu"].function(qkv, weights, pages, step, spec)
        assert made[1, :16].isnan().all() and made[[0, 2, 3, 4]].isfinite().all() and made[1, 16:].isfinite().all()


def test_what_cannot_be_computed_is_refused_with_a_reason() -> None:
    load_providers(["cpu"])
    refuses = attend.providers["cpu"].refuses
    spec = AttentionSpec(2, 1, 16, 0.25, 16)
    assert refuses(spec) is None
    assert "cuda:0" in str(refuses(replace(spec, device="cuda:0")))
    assert "float16" in str(refuses(replace(spec, dtype="float16")))
    assert "float8_e4m3fn" in str(refuses(replace(spec, kv_dtype="float8_e4m3fn")))
    assert "head_dim=1024" in str(refuses(replace(spec, head_dim=1024)))
