"""Decoders that give vectors and scores, in chunks and with prefixes from the cache, against transformers."""

from pathlib import Path

import pytest
import torch

from quire import LLM
from quire.messages.pooling import PoolingParams
from tests.pooling.checkpoints import make, with_modules
from tests.pooling.judge import TOLERANCE, judged

pytestmark = pytest.mark.torch

RAW = PoolingParams(normalize=False, use_activation=False)
GENERATOR = torch.Generator().manual_seed(3)
BEGINNING = torch.randint(3, 97, (20,), generator=GENERATOR).tolist()
TEXTS = [
    *(torch.randint(3, 97, (n,), generator=GENERATOR).tolist() for n in (33, 1, 9, 40)),
    *([*BEGINNING, n] for n in (5, 6, 7)),
]


def chunked(path: Path, **settings: object) -> LLM:
    """An engine that cuts texts into chunks and has few pages."""
    return LLM(str(path), threads=1, block_size=4, max_num_batched_tokens=13, max_num_seqs=4, **settings)


@pytest.mark.parametrize("mode", ["lasttoken", "mean_tokens", "cls_token"])
def test_vectors_are_those_of_transformers(mode: str, tmp_path: Path) -> None:
    path = with_modules(make("qwen3", tmp_path, num_key_value_heads=2, head_dim=16), mode, normalize=False)
    with chunked(path, num_gpu_blocks_override=40) as llm:
        assert llm.facts.tasks == ["embed", "token_embed", "score"]
        outputs = [llm.embed([text], use_tqdm=False)[0] for text in TEXTS[-3:]]
        outputs = llm.embed(TEXTS[:-3], use_tqdm=False) + outputs
        cut = llm.embed(TEXTS[:1], use_tqdm=False, pooling_params=PoolingParams(dimensions=8, normalize=True))
    for text, output in zip(TEXTS, outputs, strict=True):
        states = judged(path, text)
        want = {"lasttoken": states[-1], "mean_tokens": states.mean(0), "cls_token": states[0]}[mode]
        assert (torch.tensor(output.outputs.embedding) - want).abs().max() < TOLERANCE
    hits = [output.num_cached_tokens for output in outputs[-3:]]
    assert hits == ([0, 20, 20] if mode == "lasttoken" else [0, 0, 0]), "only the last token can do without the others"
    whole = torch.tensor(outputs[0].outputs.embedding)[:8]
    assert torch.tensor(cut[0].outputs.embedding).allclose(whole / whole.norm(), atol=1e-6)


def test_a_bare_model_gives_the_state_of_its_last_token(tmp_path: Path) -> None:
    path = make("llama", tmp_path)
    with chunked(path) as llm:
        (output,) = llm.embed([TEXTS[0]], use_tqdm=False)
        states = llm.encode([TEXTS[0]], RAW, pooling_task="token_embed", use_tqdm=False)[0].outputs.data
    want = judged(path, TEXTS[0])
    assert torch.tensor(output.outputs.embedding).allclose(want[-1] / want[-1].norm(), atol=1e-5)
    assert (torch.tensor(states) - want).abs().max() < TOLERANCE


@pytest.mark.parametrize("labels", [1, 3])
def test_scores_of_labels_are_those_of_transformers(labels: int, tmp_path: Path) -> None:
    path = make("qwen3", tmp_path, "sequence", labels, num_key_value_heads=2, head_dim=16)
    with chunked(path, num_gpu_blocks_override=14) as llm:
        raw = llm.classify(TEXTS, use_tqdm=False, pooling_params=RAW)
        probs = llm.classify(TEXTS, use_tqdm=False)
        rewards = llm.reward(TEXTS[:1], use_tqdm=False)
    assert rewards[0].outputs.data == pytest.approx(raw[0].outputs.probs, abs=1e-5)
    for text, scores, chances in zip(TEXTS, raw, probs, strict=True):
        want = judged(path, text, "sequence")
        assert (torch.tensor(scores.outputs.probs) - want).abs().max() < TOLERANCE
        chance = want.sigmoid() if labels == 1 else want.softmax(-1)
        assert (torch.tensor(chances.outputs.probs) - chance).abs().max() < TOLERANCE
