"""Draws of the kernels on a GPU follow the exact distribution, as those of the references on a CPU do."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

from quire import SamplingParams  # noqa: E402
from tests.sampling.rig import Rig, assert_drawn_from, exact  # noqa: E402
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
