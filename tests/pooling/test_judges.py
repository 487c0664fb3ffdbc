"""Generating models as rerankers: the logits of a yes and a no behind a frame, as Qwen3-Reranker is used."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from quire import LLM
from quire.base.errors import CheckpointError
from quire.checkpoint.read import read_facts
from tests.models.checkpoints import make

pytestmark = pytest.mark.torch

NO, YES = 20, 30
FRAME = ["w3 <s> ", "w4 ", " w5 ", " w6 w7"]
OVERRIDES: dict[str, Any] = {"classifier_from_token": ["w20", "w30"], "pair_frame": FRAME}


@pytest.mark.parametrize("tied", [False, True])
def test_scores_are_the_share_of_yes(tied: bool, tmp_path: Path) -> None:
    path = make("qwen3", tmp_path, tie_word_embeddings=tied)
    documents = ["w41 w42", "w50 w51 w52 w53"]
    with LLM(str(path), threads=1, hf_overrides=OVERRIDES, max_num_batched_tokens=5, max_num_seqs=2) as llm:
        scores = llm.score("w40", documents, use_tqdm=False)
        [spelled] = llm.score("w40", "w41 <s>", use_tqdm=False)
        [label] = llm.classify([[3, 4, 5]], use_tqdm=False)
    judge = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")

    def share(ids: list[int]) -> float:
        with torch.no_grad():
            logits = judge(torch.tensor([ids])).logits[0, -1]
        return float(logits[[NO, YES]].softmax(0)[1])

    assert spelled.prompt_token_ids.count(1) == 1, "what users write is text"
    for score, document in zip(scores, ([41, 42], [50, 51, 52, 53]), strict=True):
        assert score.outputs.score == pytest.approx(share([3, 1, 4, 40, 5, *document, 6, 7]), abs=1e-5)
    assert label.outputs.probs == pytest.approx([share([3, 4, 5])], abs=1e-5)


def test_qwen3_has_a_frame_of_its_own(tmp_path: Path) -> None:
    path = make("qwen3", tmp_path)
    found = read_facts("x", path, overrides={"classifier_from_token": ["w20", "w30"]}).pooling
    assert found is not None and found.frame is not None
    assert found.tokens == [NO, YES] and found.tasks == ["classify", "score"]
    assert found.frame[0].startswith("<|im_start|>system") and found.frame[3].endswith("</think>\n\n")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"classifier_from_token": ["w20", "never"]}, "there is no token 'never'"),
        ({"classifier_from_token": []}, "classifier_from_token"),
        ({"classifier_from_token": ["w3"], "pair_frame": ["a"]}, "pair_frame"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide', config.json has 48"),
        ({"vocab_size": 0}, "vocab_size is 0"),
    ],
)
def test_overrides_that_cannot_be_are_told(overrides: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=says):
        read_facts("x", make("qwen3", tmp_path), overrides=overrides)


def test_overrides_are_merged(tmp_path: Path) -> None:
    path = make("qwen3", tmp_path)
    was = json.loads((path / "config.json").read_text())
    facts = read_facts("x", path, overrides={"rope_parameters": {"rope_theta": 5.0}, "max_position_embeddings": 64})
    assert facts.config["rope_parameters"] == {**was["rope_parameters"], "rope_theta": 5.0}
    assert facts.context_len == 64
