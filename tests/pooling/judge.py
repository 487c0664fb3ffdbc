"""transformers as the judge of what is pooled: what it makes of one text."""

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.pooling.checkpoints import KINDS

TOLERANCE = 1e-4


def judged(path: Path, tokens: list[int], kind: str = "bare") -> Tensor:
    """The states of a text, (tokens, hidden), or what the checkpoint's head of `kind` makes of them."""
    with torch.no_grad():
        found = judge_of(path, kind)(torch.tensor([tokens]))
    result: Tensor = (found.last_hidden_state if kind == "bare" else found.logits)[0]
    return result


@lru_cache(2)
def judge_of(path: Path, kind: str) -> PreTrainedModel:
    """The checkpoint in transformers; nobody may change its weights afterwards."""
    judge: PreTrainedModel = KINDS[kind].from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    return judge
