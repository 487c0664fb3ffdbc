"""Draws of the kernels on a GPU follow the exact distribution, as those of the references on a CPU do."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

from quire import SamplingParams  # noqa: E402
from quire.messages.plan import NewRow  # noqa: E402
from quire.sampling.batch import DrawMode  # noqa: E402
from tests.sampling.grammar import WANTED, FoldStore  # noqa: E402
from tests.sampling.rig import Rig, assert_drawn_from, exact, no_waiting  # noqa: E402
from tests.sampling.test_distribution import ADVANCING, COUNTING, LOGITS, OUTPUT, VOCAB  # noqa: E402

ROWS, TURNS = 2000, 10
DEVICE = torch.device("cuda")


@pytest.mark.parametrize("case", [*ADVANCING, *COUNTING])
def test_draws_follow_the_exact_distribution(case):
    params = SamplingParams(**(ADVANCING | COUNTING)[case])
    rig, rows = Rig(VOCAB, ROWS, device=DEVICE, providers=("triton", "torch_native")), list(range(ROWS))
    for row in rows:
        rig.begin(row, params, output=OUTPUT, seed=row)
    lines, tokens = LOGITS.to(DEVICE).repeat(ROWS, 1), []
    # Where counts grow with every token, only the first of a row is drawn from this distribution.
    for _ in range(1 if case in COUNTING else TURNS):
        tokens += rig.sample(lines, rows)[0]
        rig.known += 1
    assert_drawn_from(tokens, exact(LOGITS, params, output=OUTPUT))


SETTINGS = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.8, top_k=5, repetition_penalty=1.2),
    SamplingParams(temperature=1.0, presence_penalty=0.5, logprobs=3, logit_bias={4: 1.0}),
    SamplingParams(temperature=1.0, top_p=0.9, min_tokens=2, stop_token_ids=[3]),
    SamplingParams(temperature=1.0, structured_outputs=WANTED),
)


def test_no_change_of_a_batch_waits_for_the_device():
    logits, providers = LOGITS.to(DEVICE), ("triton", "torch_native")
    rig = Rig(VOCAB, len(SETTINGS), device=DEVICE, providers=providers, grammars=FoldStore())
    rig.sampler.stay()
    batches = {(0,): None, (0, 1, 2, 3, 4): None, (3, 1): None, (2,): None, (4,): None}
    for rows in batches:
        batches[rows] = torch.tensor(rows, device=DEVICE), logits.repeat(len(rows), 1)

    def sample_all():
        for rows, (at, lines) in batches.items():
            for row in rows:
                new = NewRow(row, [1, 2, 3], 3, 0, [], SETTINGS[row], row, [5], [[6, 7]], 64)
                rig.sampler.begin(new)
            rig.sampler.sample(lines, list(rows), at, rig.history, rig.known)
            # What is recorded, and what goes before it and behind it each step.
            if rig.sampler.draw_mode(list(rows)) is DrawMode.EDITED:
                rig.sampler.send_masks(list(rows), {})
                drawn = rig.sampler.draw_edited(lines, at, rig.history, rig.known)
                rig.sampler.samples(list(rows), drawn, {})
            rig.sampler.end(rows[-1])

    rig.known += 3
    sample_all()  # compiles, and takes what memory it needs
    with no_waiting():
        with pytest.raises(RuntimeError, match="synchroniz"):
            rig.known.tolist()
        sample_all()
