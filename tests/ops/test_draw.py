"""Drawing without a sort equals the reference, whatever the settings: tokens, cuts among equals, rows that are lost."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.kernels.torch_native import draw as native
from quire.ops.draw import Group, Kind, RowTable, draw_tokens, sample_table
from quire.ops.registry import load_providers
from quire.platforms.native import is_built
from tests.ops.triton import INTERPRETER, needs_interpreter

pytestmark = pytest.mark.torch

load_providers(["torch_native", *(["cpu"] if is_built() else []), *(["triton"] if INTERPRETER else [])])
PROVIDERS = [name for name in draw_tokens.providers if name in ("torch_native", "cpu", "triton")]

ROW = st.tuples(
    st.sampled_from([0.0, 1e-4, 0.3, 1.0, 2.0]),  # temperature
    st.sampled_from([0, 1, 2, 5, 16, 40]),  # top_k
    st.sampled_from([0.0, 1e-9, 0.3, 0.9, 0.9999999, 1.0]),  # top_p
    st.sampled_from([0.0, 0.01, 0.3, 1.0]),  # min_p
)
LINE = st.sampled_from(["normal", "wide", "flat", "steps", "few", "huge", "nan", "inf", "nothing"])


def logits_of(kind: str, vocab: int, seed: int) -> torch.Tensor:
    """One line of logits, (vocab,) float32."""
    x = torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) * 2
    lines = {
        "normal": x,
        "wide": x * 30,
        "flat": torch.full_like(x, -0.0),
        "steps": x.round(),
        "few": torch.where(torch.arange(vocab) % 7 == seed % 7, x, -torch.inf),
        "huge": x * 1e38,
        "nan": torch.where(torch.arange(vocab) == seed % vocab, torch.nan, x),
        "inf": torch.where(torch.arange(vocab) == seed % vocab, torch.inf, x),
        "nothing": torch.full_like(x, -torch.inf),
    }
    return lines[kind]


def groups_of(table: RowTable, rows: torch.Tensor, vocab: int) -> tuple[Group, ...]:
    """What a host that has read the table would say."""
    by_kind: dict[Kind, list[int]] = {}
    for line, row in enumerate(rows.tolist()):
        temperature, top_p = table.numbers[row, :2].tolist()
        if temperature:
            cut = Kind.NUCLEUS if top_p < 1 else Kind.PLAIN
            by_kind.setdefault(Kind.SHORT if table.integers[row, 0] < vocab else cut, []).append(line)
    return tuple(
        Group(torch.tensor(lines), kind, int(table.integers[rows[lines], 0].max()), True)
        for kind, lines in by_kind.items()
    )


def shrink(patch: pytest.MonkeyPatch, room: int) -> None:
    """Small parts, so that small vocabularies have several; `room` tokens in a list."""
    patch.setattr(native, "BLOCK", 4)
    patch.setattr(native, "FIRST", 2)
    if INTERPRETER:
        from quire.kernels.triton.step import draw

        patch.setattr(draw, "PART", 32)
        patch.setattr(draw, "TILE", 16)
        patch.setattr(draw, "ROOM", room)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # of huge logits, in the interpreter
@pytest.mark.parametrize("provider", PROVIDERS)
@settings(max_examples=15)
@given(
    st.lists(st.tuples(ROW, LINE), min_size=1, max_size=3),
    st.sampled_from([17, 64, 101]),
    st.sampled_from(["float32", "bfloat16"]),
    st.sampled_from([16, 128]),
    st.integers(0, 1000),
)
def test_tokens_equal_those_of_the_reference(provider, lines, vocab, dtype, room, seed):
    table = sample_table(vocab, *map(list, zip(*((t, min(k, vocab), p, m) for (t, k, p, m), _ in lines), strict=True)))
    rows = torch.randperm(len(lines), generator=torch.Generator().manual_seed(seed))
    logits = torch.stack([logits_of(lines[row][1], vocab, seed + row) for row in rows.tolist()])
    logits = logits.to(getattr(torch, dtype))
    known = torch.full((len(lines),), seed, dtype=torch.int32)
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch, room)
        function = draw_tokens.providers[provider].function
        groups = groups_of(table, rows, vocab) if seed % 4 or provider != "triton" else None
        found = function(logits, rows, known, table, groups)
        assert torch.equal(found, draw_tokens(logits, rows, known, table))


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("line", ["normal", "steps", "flat"])
@pytest.mark.parametrize("setting", [(7, 1.0, 0.0), (0, 0.8, 0.0), (20, 0.6, 0.0), (0, 1.0, 0.2), (40, 0.8, 0.2)])
def test_what_is_kept_equals_the_reference(provider, line, setting, monkeypatch):
    """Many draws from the same logits: a token more or less in the set would be drawn, or missed, by some seed."""
    if provider == "triton" and line != "steps":
        pytest.skip("the interpreter is slow; a GPU tests more")
    vocab, count = 61, 12 if provider == "triton" else 150
    shrink(monkeypatch, 64)
    top_k, top_p, min_p = setting
    table = sample_table(vocab, [2.0] * count, [top_k] * count, [top_p] * count, [min_p] * count)
    logits, rows = logits_of(line, vocab, 3).repeat(count, 1), torch.arange(count)
    known = torch.zeros(count, dtype=torch.int32)
    want = draw_tokens(logits, rows, known, table)
    found = draw_tokens.providers[provider].function(logits, rows, known, table, groups_of(table, rows, vocab))
    assert torch.equal(found, want)
    assert len(set(want[0].tolist())) > 2


@needs_interpreter
@pytest.mark.parametrize("top_k", [0, 5])
def test_a_lost_row_changes_no_neighbour(top_k):
    vocab = 300
    table = sample_table(vocab, [1.0] * 3, [top_k] * 3, [0.9] * 3, [0.0] * 3)
    logits = torch.stack([logits_of("normal", vocab, i) for i in range(3)])
    arguments = (torch.arange(3), torch.zeros(3, dtype=torch.int32), table)
    function = draw_tokens.providers["triton"].function
    whole = function(logits, *arguments)
    for poison in (torch.nan, torch.inf, -torch.nan):
        broken = logits.clone()
        broken[1, 7] = poison
        assert function(broken, *arguments).tolist() == [[whole[0, 0], 0, whole[0, 2]], [0, 1, 0]]
