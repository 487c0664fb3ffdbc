"""What recordings draw, from tables that stay where they are, equals what the sampler draws step by step."""

from dataclasses import replace

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.messages.params import SamplingParams
from quire.ops.logprobs import Logprobs, token_logprobs
from quire.sampling import bans, batch
from quire.sampling.batch import DrawMode
from tests.sampling.grammar import WANTED, FoldStore
from tests.sampling.rig import Rig
from tests.sampling.strategies import LOGITS, SEQUENCE, VOCAB

pytestmark = pytest.mark.torch

ROWS = 7
DUMMY = ROWS - 1


def barely(logits, chosen, top, wanted=None):
    """Describes no more than is wanted, for a slice at a time: the rest is rubbish."""
    assert len(logits) <= batch.SLICE_ROWS
    found = token_logprobs.reference(logits, chosen, top)
    if wanted is None:
        return found
    spared = torch.arange(found.ids.shape[1]) > wanted[:, None]
    ranks = found.ranks.masked_fill(wanted < 0, -7)
    return Logprobs(found.ids.masked_fill(spared, -7), found.values.masked_fill(spared, -7.0), ranks)


def recorded(rig, logits, rows):
    """One step of `rig` as a recording draws it: padded with a row that nobody uses."""
    assert rig.sampler.draw_mode(rows) is not None
    errors = {}
    rig.sampler.send_masks(rows, errors)
    at = torch.tensor([*rows, DUMMY, DUMMY])
    lines = torch.cat([logits, torch.full((2, logits.shape[1]), float("nan"))])
    drawn = rig.sampler.draw_edited(lines, at, rig.history, rig.known)[:, : len(rows)]
    return rig.sampler.samples(rows, drawn, errors)


def stepped(rig, logits, rows):
    return rig.sampler.sample(logits, rows, torch.tensor(rows), rig.history, rig.known)


def turns(step, sequences, comings):
    """Three turns of rows that come and go: all that `step` tells."""
    rig, found, logits = Rig(VOCAB, ROWS, providers=(), grammars=FoldStore()), [], {}
    rig.sampler.kernels = replace(rig.sampler.kernels, describe=barely)
    rig.sampler.stay()
    for coming in comings:
        for row, which in coming:
            sequence, logits[row], bound = sequences[which % len(sequences)]
            params = msgspec.structs.replace(sequence["params"], structured_outputs=WANTED if bound else None)
            rig.begin(row, **{**sequence, "params": params})
        rows = sorted(logits)
        samples = step(rig, torch.tensor([logits[row] for row in rows]), rows)
        at = torch.tensor(rows)
        rig.history[at, rig.known[at].long()] = samples.tokens.int()
        rig.known[at] += 1
        tokens, bad, logprobs, errors = samples.to_host()
        rig.sampler.advance(rows, tokens, errors)
        found.append((tokens, bad, logprobs, errors))
    return found


ROW, WHICH = st.integers(0, DUMMY - 1), st.integers(0, 9)
COMINGS = st.lists(st.lists(st.tuples(ROW, WHICH), max_size=4), min_size=2, max_size=4)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(SEQUENCE, LOGITS, st.booleans()), min_size=1, max_size=5), COMINGS, st.sampled_from([1, 2, 9])
)
def test_recordings_draw_and_tell_the_same(sequences, comings, size):
    comings[0].append((0, 0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "RECORDED_TOP", VOCAB)
        patch.setattr(batch, "SLICE_ROWS", size)
        assert turns(recorded, sequences, comings) == turns(stepped, sequences, comings)


def test_what_a_recording_has_no_room_for_is_not_drawn_by_it(monkeypatch):
    monkeypatch.setattr(bans, "LASTING_ENTRIES", 3)
    rig = Rig(VOCAB, ROWS)
    rig.sampler.stay()
    rig.begin(0, SamplingParams(), bad_words=((1, 2), (3,)))
    assert rig.sampler.draw_mode([0]) is DrawMode.EDITED
    rig.begin(1, SamplingParams(), bad_words=((4,), (5,)))
    assert rig.sampler.draw_mode([0]) is None
    rig.sampler.end(1)
    assert rig.sampler.draw_mode([0]) is DrawMode.EDITED
    rig.begin(1, SamplingParams(logprobs=batch.RECORDED_TOP + 1))
    rig.begin(2, SamplingParams(logits_processors=[lambda ids, logits: logits]))
    assert (rig.sampler.draw_mode([1]), rig.sampler.draw_mode([2])) == (None, None)


def test_a_row_that_has_ended_leaves_no_mask():
    rig = Rig(VOCAB, ROWS, grammars=FoldStore())
    rig.begin(0, SamplingParams(structured_outputs=WANTED))
    rig.sampler.send_masks([0], {})
    table = rig.sampler._masks.table
    assert (table[0] != -1).any()
    rig.sampler.end(0)
    assert (table == -1).all()
