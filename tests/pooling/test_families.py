"""Every family of encoders against transformers, text by text, in ragged steps of the real engine."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from quire import LLM
from quire.messages.pooling import PoolingParams
from tests.pooling.checkpoints import make
from tests.pooling.judge import TOLERANCE, judged

pytestmark = pytest.mark.torch

RAW = PoolingParams(normalize=False, use_activation=False)
TASKS = {"bare": "token_embed", "sequence": "classify", "token": "token_classify"}


@dataclass(frozen=True)
class Case:
    """A checkpoint: family, its head."""

    name: str
    family: str
    kind: str = "bare"
    kernels: str = "auto"


CASES = [
    Case("bert", "bert"),
    Case("bert reference", "bert", kernels="reference"),
    Case("bert scores", "bert", "sequence"),
    Case("bert tokens", "bert", "token"),
    Case("roberta", "roberta"),
    Case("roberta scores", "roberta", "sequence"),
    Case("roberta tokens", "roberta", "token"),
    Case("xlm-roberta", "xlm-roberta"),
    Case("xlm-roberta scores", "xlm-roberta", "sequence"),
    Case("camembert scores", "camembert", "sequence"),
    Case("nomic", "nomic_bert"),
    Case("nomic scores", "nomic_bert", "sequence"),
    Case("gte", "gte"),
    Case("gte tokens", "gte", "token"),
    Case("modernbert", "modernbert"),
    Case("modernbert reference", "modernbert", kernels="reference"),
    Case("modernbert scores", "modernbert", "sequence"),
    Case("modernbert tokens", "modernbert", "token"),
]


def texts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 97, (n,), generator=generator).tolist() for n in (5, 9, 1, 9, 64, 30)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_family_equals_transformers(case: Case, tmp_path: Path) -> None:
    path = make(case.family, tmp_path, case.kind)
    with LLM(str(path), kernels=case.kernels, threads=1) as llm:
        outputs = llm.encode(texts(), RAW, pooling_task=TASKS[case.kind], use_tqdm=False)
    for tokens, output in zip(texts(), outputs, strict=True):
        found = torch.tensor(output.outputs.data)
        assert (found - judged(path, tokens, case.kind)).abs().max() < TOLERANCE


@pytest.mark.multi
def test_two_ranks_give_the_same(tmp_path: Path) -> None:
    path = make("bert", tmp_path)
    with LLM(str(path), threads=1, tensor_parallel_size=2) as llm:
        outputs = llm.encode(texts(), RAW, pooling_task="token_embed", use_tqdm=False)
    for tokens, output in zip(texts(), outputs, strict=True):
        assert (torch.tensor(output.outputs.data) - judged(path, tokens)).abs().max() < TOLERANCE
