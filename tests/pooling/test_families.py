"""Every family of encoders against transformers, text by text, in ragged steps of the real engine."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from quire import LLM
from quire.messages.pooling import PoolingParams
from tests.pooling.checkpoints import KINDS, make

pytestmark = pytest.mark.torch

TOLERANCE = 1e-4
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


def expected(path: Path, kind: str, tokens: list[int]) -> torch.Tensor:
    judge = KINDS[kind].from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        found = judge(torch.tensor([tokens]))
    result: torch.Tensor = (found.last_hidden_state if kind == "bare" else found.logits)[0]
    return result


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_family_equals_transformers(case: Case, tmp_path: Path) -> None:
    path = make(case.family, tmp_path, case.kind)
    with LLM(str(path), kernels=case.kernels, threads=1) as llm:
        outputs = llm.encode(texts(), RAW, pooling_task=TASKS[case.kind], use_tqdm=False)
    for tokens, output in zip(texts(), outputs, strict=True):
        found = torch.tensor(output.outputs.data)
        assert (found - expected(path, case.kind, tokens)).abs().max() < TOLERANCE


@pytest.mark.multi
@pytest.mark.parametrize("family", ["bert", "gte", "modernbert"])  # the others are one of these under another name
def test_two_ranks_give_the_same(family: str, tmp_path: Path) -> None:
    path = make(family, tmp_path)
    with LLM(str(path), threads=1, tensor_parallel_size=2) as llm:
        outputs = llm.encode(texts(), RAW, pooling_task="token_embed", use_tqdm=False)
    for tokens, output in zip(texts(), outputs, strict=True):
        assert (torch.tensor(output.outputs.data) - expected(path, "bare", tokens)).abs().max() < TOLERANCE
