"""Triton's attention cut in other ways than its samples happen to be: by shape of the work, and by the copy engine."""

import copy
import dataclasses
from itertools import accumulate, pairwise

import pytest
import torch

from quire.ops.attention import AttentionSpec, HeadWeights, KVPages, attend, paged_attention
from quire.ops.registry import load_providers
from quire.ops.samples import normal, step_over
from tests.ops.triton import needs_interpreter

pytestmark = [
    pytest.mark.torch,
    needs_interpreter,
]


def long_samples(op, **wanted):
    """Samples whose sequences span several splits and tiles."""
    for spec, kwargs in op.samples():
        if op.providers["triton"].refuses(spec):
            continue
        if kwargs["step"].max_seq > 100 and all(getattr(spec, name) == value for name, value in wanted.items()):
            yield copy.deepcopy(kwargs)


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"resident": 6},
        {"tile": 32, "resident": 9},
        {"tile": 128, "resident": 40},
        {"early": True, "splits": 4, "tile": 32},
        {"early": True, "splits": 2, "tile": 64},
        {"early": True, "splits": 1, "tile": 32},
    ],
    ids=str,
)
def test_decoding_cut_otherwise(shape, monkeypatch):
    load_providers(["triton"])
    from quire.kernels.triton.attention import decode

    monkeypatch.setattr(decode, "shape_of", lambda *facts: decode.Shape(**shape))
    compared = 0
    for kwargs in long_samples(attend, step="decode"):
        other = copy.deepcopy(kwargs)
        torch.testing.assert_close(attend.providers["triton"].function(**other), attend(**kwargs), rtol=1e-5, atol=1e-5)
        got, want = (side["pages"].k.float() for side in (other, kwargs))
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5, equal_nan=True)
        compared += 1
    assert compared


@pytest.mark.parametrize(
    ("heads", "page_size", "kept"),
    [
        ((12, 1, 128), 16, None),
        ((32, 1, 128), 64, "float8_e4m3fn"),
        ((48, 1, 64), 16, "float8_e5m2"),
        ((24, 2, 256), 64, None),
    ],
    ids=str,
)
def test_many_query_heads_of_a_kv_head_in_runs(heads, page_size, kept, monkeypatch):
    load_providers(["triton"])
    from quire.kernels.triton.attention import decode

    monkeypatch.setattr(decode, "shape_of", lambda *facts: decode.Shape(tile=32))
    spec = AttentionSpec(*heads, heads[2] ** -0.5, heads[2], kv_dtype=kept, step="decode")
    lengths = [100, 0, 33]
    counts = [-(-length // page_size) for length in lengths]
    order = (torch.randperm(sum(counts), generator=torch.Generator().manual_seed(7)) + 1).tolist()
    step = step_over([1] * 3, lengths, [[order.pop() for _ in range(count)] for count in counts], page_size)
    pools = [normal(spec.kept, sum(counts) + 1, page_size, *heads[1:], seed=seed) for seed in (1, 2)]
    weights = HeadWeights(normal("float32", 101, heads[2]))
    qkv = normal("float32", 3, sum(spec.parts) * heads[2])
    got, want = (
        function(qkv, weights, KVPages(*(pool.clone() for pool in pools), 0, 0.5, 1.25), step, spec)
        for function in (attend.providers["triton"].function, attend)
    )
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_sinks_that_take_no_share_leave_padding_zero(monkeypatch):
    load_providers(["triton"])
    from quire.kernels.triton.attention import decode

    monkeypatch.setattr(decode, "shape_of", lambda *facts: decode.Shape())
    compared = 0
    for spec, kwargs in attend.samples():
        if not spec.sinks or spec.step != "decode" or spec.dtype != "float32" or 0 not in kwargs["step"].seq_lens:
            continue
        kwargs["weights"].sinks[::2] = -torch.inf
        got = attend.providers["triton"].function(**copy.deepcopy(kwargs))
        torch.testing.assert_close(got, attend(**kwargs), rtol=1e-5, atol=1e-5)
        compared += 1
    assert compared


@pytest.mark.parametrize("lines", [16, 128])
def test_prompts_by_the_copy_engine(lines, monkeypatch):
    load_providers(["triton"])
    from quire.kernels.triton.attention import prefill

    shape = prefill.Shape(lines, 32, 3, 4, bulk=True)
    monkeypatch.setattr(prefill, "shape_of", lambda dim, dtype, most, engine: shape)
    monkeypatch.setattr(prefill, "COPIED", 32)
    compared = 0
    for kwargs in long_samples(paged_attention, step="eager"):
        got = paged_attention.providers["triton"].function(**kwargs)
        rtol, atol = paged_attention.tolerance[kwargs["spec"].dtype]
        torch.testing.assert_close(got, paged_attention(**kwargs), rtol=rtol, atol=atol)
        compared += 1
    assert compared


@pytest.mark.parametrize("runs", [1, 2, 3, 7, 64])
def test_every_run_has_as_many_tiles(runs):
    load_providers(["triton"])
    from quire.kernels.triton.attention import listing

    spec = next(iter(long_samples(attend, step="decode", window=None)))["spec"]
    lengths = [1, 40, 0, 170, 16, 17, 18, 300, 33]
    tables = [list(range(1, 2 + length // 16)) for length in lengths]
    step = step_over([1] * len(lengths), lengths, tables, 16)
    work = listing.make(step.seq_lens, step.groups[0], listing.Cut(16, 1, runs), spec, None)
    tiles = [max(1, -(-length // 16)) for length in lengths]
    begins = work.runs[:, 0].tolist()
    assert begins[0] == 0 and begins[-1] == sum(tiles)
    some = [later - earlier for earlier, later in pairwise(begins)]
    assert max(some) - min(filter(None, some)) <= 1
    splits = work.splits[: int(work.total)].tolist()
    assert [sum(entry[2] for entry in splits if entry[0] == row) for row in range(len(lengths))] == tiles
    assert [entry[1] for entry in splits] == list(accumulate((entry[2] for entry in splits[:-1]), initial=0))
    starts = {entry[1]: at for at, entry in enumerate(splits)}
    assert all(starts[tile] == split for tile, split in work.runs.tolist() if tile < sum(tiles))
    marks = work.tiles[: sum(tiles)].tolist()
    assert {i for i, mark in enumerate(marks) if mark & listing.FIRST.value} == set(starts)
    assert {i + 1 for i, mark in enumerate(marks) if mark & listing.LAST.value} == {*list(starts)[1:], sum(tiles)}
    cut = sorted({entry[4] for entry in splits if entry[3] > 1})
    assert [split for split in work.firsts.tolist() if split >= 0] == cut


@pytest.mark.parametrize("rows", [2, 3])
def test_a_small_batch_is_cut_by_the_length_of_each_row(rows):
    load_providers(["triton"])
    kwargs = next(iter(long_samples(attend, step="decode", window=None)))
    step = kwargs["step"]
    shorter = dataclasses.replace(step, seq_lens=step.seq_lens.clone(), derived={})
    shorter.seq_lens[1] = rows
    function = attend.providers["triton"].function
    both = [function(**{**kwargs, "step": s})[0] for s in (step, shorter)]
    assert torch.equal(*both)


def test_every_block_of_many_prompts_is_listed_once():
    load_providers(["triton"])
    from quire.kernels.triton.attention import prefill

    counts = [(3 * i) % 41 + 1 for i in range(140)]
    step = step_over(counts, [count + 7 for count in counts], [[1 + i] for i in range(140)], 64)
    blocks, total = prefill.list_blocks(step, 16)
    starts = step.query_start.tolist()
    wanted = [
        [row, starts[row] + at, min(16, count - at), 7 + at]
        for row, count in enumerate(counts)
        for at in reversed(range(0, count, 16))
    ]
    assert blocks[: int(total)].tolist() == wanted
