"""What the slots of rows hold, however many rows begin together, equals what is written down entry by entry."""

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.messages.params import SamplingParams
from quire.messages.plan import NewRow
from quire.ops.edit import IN_PROMPT
from quire.sampling.rows import PENALTIES, Feature, RowState
from tests.sampling.rig import CPU
from tests.sampling.strategies import PARAMS, TOKENS, VOCAB, optional

pytestmark = pytest.mark.torch

ROWS = 8
BUSY = SamplingParams(repetition_penalty=1.1, frequency_penalty=0.5, logit_bias={2: 1.0, 5: -2.0})

WILD = st.integers(-3, VOCAB + 3)
BIAS = st.dictionaries(WILD, st.one_of(st.floats(-100, 100), st.just(-0.0)), max_size=6)
EDITED = st.builds(
    lambda params, bias, allowed: msgspec.structs.replace(params, logit_bias=bias, allowed_token_ids=allowed),
    PARAMS,
    optional(BIAS),
    optional(st.lists(WILD, max_size=30)),
)
SEQUENCES = st.tuples(EDITED, st.lists(TOKENS, min_size=1, max_size=30), st.lists(TOKENS, max_size=30))
BEGUN = st.dictionaries(st.integers(0, ROWS - 1), SEQUENCES, max_size=ROWS)
ENDED = st.sets(st.integers(0, ROWS - 1))


def new_row(row: int, params: SamplingParams, prompt: list[int], output: list[int]) -> NewRow:
    return NewRow(row, [*prompt, *output], len(prompt), 0, [], params, 0, [], [], 99)


def counts_of(params: SamplingParams, prompt: list[int], output: list[int]) -> list[int] | None:
    """Entry by entry; None for no slot."""
    if params.repetition_penalty == 1 and not params.frequency_penalty and not params.presence_penalty:
        return None
    marked = set() if params.repetition_penalty == 1 else set(prompt)
    return [output.count(token) + IN_PROMPT * (token in marked) for token in range(VOCAB)]


def offsets_of(params: SamplingParams) -> list[float] | None:
    """Entry by entry; None for no slot."""
    bias, allowed = params.logit_bias, params.allowed_token_ids
    if not bias and allowed is None:
        return None
    return [
        float("-inf") if allowed is not None and token not in allowed else (bias or {}).get(token, 0.0)
        for token in range(VOCAB)
    ]


def assert_holds(state: RowState, running: dict[int, tuple[SamplingParams, list[int], list[int]]]) -> None:
    """Every row has its own values, to the bit, or zeros."""
    counts, offsets = (table.slots.gather(torch.arange(ROWS)) for table in (state.counts, state.offsets))
    for row in range(ROWS):
        found = counts_of(*running[row]) if row in running else None
        bias = offsets_of(running[row][0]) if row in running else None
        assert counts[row].tolist() == (found or [0] * VOCAB)
        assert torch.equal(offsets[row].view(torch.int32), torch.tensor(bias or [0.0] * VOCAB).view(torch.int32))
        host = state.host[row]
        assert (host is not None) == (row in running)
        assert (host is not None and bool(host.features & PENALTIES)) == (found is not None)
        assert (host is not None and Feature.OFFSET in host.features) == (bias is not None)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(ENDED, BEGUN), min_size=1, max_size=5), st.integers(0, 5))
def test_slots_hold_what_their_rows_say_and_nothing_of_who_was_there_before(turns, staying):
    state, running = RowState(ROWS, VOCAB, CPU), {}
    for turn, (ended, begun) in enumerate(turns):
        if turn == staying:
            state.stay()
        state.end(*ended)
        running = {row: sequence for row, sequence in running.items() if row not in ended} | begun
        state.begin(*(new_row(row, *sequence) for row, sequence in begun.items()))
        assert_holds(state, running)


def test_tables_that_stay_are_where_they_were_when_all_rows_begin_again():
    state = RowState(ROWS, VOCAB, CPU)
    state.begin(new_row(3, BUSY, [1], []))
    tables = state.stay()
    everyone = {row: (BUSY, [row, row, 9], [row]) for row in range(ROWS)}
    for some in (everyone, {2: everyone[5], 6: everyone[1]}, everyone):
        state.begin(*(new_row(row, *sequence) for row, sequence in some.items()))
        assert_holds(state, everyone | some)
    for before, now in ((tables.counts, state.counts.slots), (tables.offsets, state.offsets.slots)):
        assert now.table.data_ptr() == before.table.data_ptr()
        assert now.of_row.data_ptr() == before.of_row.data_ptr()


@pytest.mark.parametrize("output", [[], [4, 4]])
def test_many_rows_begin_and_end_in_as_many_operations_as_two(output):
    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    state, work = RowState(ROWS, VOCAB, CPU), []
    state.stay()
    for count in (2, ROWS):
        names: list[str] = []
        with Watch():
            state.begin(*(new_row(row, BUSY, [1, 2], output) for row in range(count)))
            state.end(*range(count))
        work.append(names)
    assert work[0] == work[1] != []


@pytest.mark.parametrize("prompt, output", [([VOCAB], []), ([1], [VOCAB]), ([-1], []), ([1], [-1])])
def test_a_token_outside_the_vocabulary_reaches_no_neighbour_and_costs_no_slot(prompt, output):
    state = RowState(ROWS, VOCAB, CPU)
    good = {row: (BUSY, [row], []) for row in range(ROWS)}
    state.begin(*(new_row(row, *good[row]) for row in range(4)))
    with pytest.raises(IndexError, match="do not lie in a vocabulary of 24"):
        state.begin(new_row(4, BUSY, [1], []), new_row(5, BUSY, prompt, output))
    state.end(4, 5)
    assert_holds(state, {row: good[row] for row in range(4)})
    state.begin(*(new_row(row, *sequence) for row, sequence in good.items()))
    assert_holds(state, good)
