"""transformers as the judge: its logits after each token of a text, and what of a driver's sequences must agree."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.models.driver import Sequence

NEW = 6
"""Tokens that drivers write."""
TOLERANCE = 1e-4


def judge_of(path: Path) -> PreTrainedModel:
    """The checkpoint in transformers."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    )
    return model


def judged(judge: PreTrainedModel, tokens: list[int]) -> Tensor:
    """(tokens - 1, vocab): logits after all tokens but the last."""
    with torch.no_grad():
        logits: Tensor = judge(torch.tensor([tokens]), use_cache=False).logits[0, :-1]
    return logits


def check_near(found: Tensor, want: Tensor, before: int = 0) -> None:
    """Assert that logits agree, (tokens, vocab); the first of them come after `before` others."""
    errors = (found - want).abs().amax(-1)
    wrong = (~(errors < TOLERANCE)).nonzero().flatten().tolist()
    assert not wrong, (
        f"logits after {len(wrong)} of {len(errors)} tokens are wrong, first after the token at position "
        f"{before + wrong[0]}, by {errors[wrong[0]]:.2g}"
    )


def check(sequence: Sequence, judge: PreTrainedModel) -> None:
    """Assert that all logits of a sequence are the judge's, and the last NEW tokens those that it would write."""
    want = judged(judge, sequence.tokens)
    check_near(sequence.all_logits(), want)
    assert sequence.tokens[-NEW:] == want[-NEW:].argmax(-1).tolist()
