"""Texts as vectors of their tokens: ColBERT's own checkpoints; dense modules of sentence-transformers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel

from quire import LLM, models
from quire.base.errors import CheckpointError, RequestError
from quire.checkpoint.read import read_facts
from quire.layers.build import Build
from quire.messages.pooling import PoolingParams
from quire.messages.pooling_outputs import late_similarity
from quire.parallel.mesh import Mesh
from tests.pooling.checkpoints import make, with_modules
from tests.pooling.judge import judged

pytestmark = pytest.mark.torch

WIDTH, MASK = 10, 93
QUERIES, DOCUMENTS = ["w5 w9 w11", "w40"], ["w5 w9 w70 w71", "w41 w42 w43 w44 w45"]


def ids(text: str) -> list[int]:
    return [int(word[1:]) for word in text.split()]


def matrix(seed: int = 2, rows: int = WIDTH, columns: int = 48) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.2


def colbert(folder: Path) -> Path:
    """As the authors publish them: the product beside the encoder."""
    path = make("bert", folder)
    tensors = {f"bert.{name}": tensor for name, tensor in load_file(path / "model.safetensors").items()}
    save_file({**tensors, "linear.weight": matrix()}, path / "model.safetensors")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "architectures": ["HF_ColBERT"]}))
    return path


def dense(path: Path, number: int, weight: Tensor, bias: bool, activation: str) -> None:
    """A dense module of sentence-transformers, listed after those that are there."""
    folder = path / f"{number}_Dense"
    folder.mkdir()
    shape = {"in_features": weight.shape[1], "out_features": weight.shape[0]}
    name = f"torch.nn.modules.{activation}"
    (folder / "config.json").write_text(json.dumps({**shape, "bias": bias, "activation_function": name}))
    tensors = {"linear.weight": weight} | ({"linear.bias": weight[:, 0].clone()} if bias else {})
    save_file(tensors, folder / "model.safetensors")
    file = path / "modules.json"
    listed = json.loads(file.read_text()) if file.exists() else [{"path": "", "type": "a.Transformer"}]
    file.write_text(json.dumps([*listed, {"path": folder.name, "type": "sentence_transformers.models.Dense"}]))


def late(states: Tensor) -> Tensor:
    return torch.nn.functional.normalize(states @ matrix().T, dim=-1)


def expected(path: Path, query: str, document: str, judge: Path) -> float:
    first, second = (late(judged(judge, ids(text))) for text in (query, document))
    return float((first @ second.T).max(1).values.sum())


def test_colbert_compares_token_by_token(tmp_path: Path) -> None:
    path, judge = colbert(tmp_path / "late"), make("bert", tmp_path / "judge")
    with LLM(str(path), threads=1) as llm:
        [output] = llm.encode("w5 w9 w11", pooling_task="token_embed", use_tqdm=False)
        assert (torch.tensor(output.outputs.data) - late(judged(judge, [5, 9, 11]))).abs().max() < 1e-4
        for query in QUERIES:
            scores = llm.score(query, DOCUMENTS, use_tqdm=False)
            for score, document in zip(scores, DOCUMENTS, strict=True):
                assert score.outputs.score == pytest.approx(expected(path, query, document, judge), abs=1e-4)
        with pytest.raises(RequestError, match="does not serve the task embed"):
            llm.embed("w5", use_tqdm=False)


def test_queries_and_documents_have_beginnings_of_their_own(tmp_path: Path) -> None:
    path = make("modernbert", tmp_path / "late")
    judge = make("modernbert", tmp_path / "judge")
    dense(path, 1, matrix(), False, "linear.Identity")
    sides = {"query_prefix": "w90 ", "document_prefix": "w91 w92 ", "skiplist_words": ["w9", "w5", "unknown"]}
    (path / "config_sentence_transformers.json").write_text(json.dumps(sides))
    with LLM(str(path), threads=1) as llm:
        [score] = llm.score("w5 w9", "w9 w6 w5", use_tqdm=False)
    query, document = (late(judged(judge, ids(text))) for text in ("w90 w5 w9", "w91 w92 w9 w6 w5"))
    want = float((query @ document[[0, 1, 3]].T).max(1).values.sum())
    assert score.outputs.score == pytest.approx(want, abs=1e-4)


def test_punctuation_of_colberts_own_checkpoints_does_not_count(tmp_path: Path) -> None:
    path = colbert(tmp_path)
    told = json.loads((path / "tokenizer.json").read_text())
    told["model"]["vocab"] |= {",": told["model"]["vocab"].pop("w7"), "?": told["model"]["vocab"].pop("w8")}
    (path / "tokenizer.json").write_text(json.dumps(told))
    (path / "artifact.metadata").write_text('{"mask_punctuation": true}')
    facts = read_facts("x", path).pooling
    assert facts is not None and facts.late is not None and facts.late.skipped == [7, 8]


def masked(judge: Path, real: list[int], masks: int) -> Tensor:
    """The states of tokens behind which masks stand that no token sees."""
    model, ids = AutoModel.from_pretrained(judge).eval(), torch.tensor([[*real, *[MASK] * masks]])
    with torch.no_grad():
        states: Tensor = model(ids, attention_mask=torch.tensor([[1] * len(real) + [0] * masks])).last_hidden_state[0]
    return states


@pytest.mark.parametrize("truncate", [None, 4])
def test_queries_are_filled_up_with_masks_and_texts_are_marked(truncate: int | None, tmp_path: Path) -> None:
    """As ColBERT's own file says; the words of a truncated query are what is left out."""
    path, judge = colbert(tmp_path / "late"), make("bert", tmp_path / "judge")
    (path / "special_tokens_map.json").write_text(json.dumps({"mask_token": {"content": f"w{MASK}"}}))
    said = {"query_token_id": "w90", "doc_token_id": "w91", "query_maxlen": 7, "attend_to_mask_tokens": False}
    (path / "artifact.metadata").write_text(json.dumps(said))
    params = PoolingParams(truncate_prompt_tokens=truncate)
    with LLM(str(path), threads=1) as llm:
        [score] = llm.score("w5 w9 w11 w12", "w40 w41 w42", pooling_params=params, use_tqdm=False)
    reads = [5, 90, 9, 11, 12] if truncate is None else [5, 90, 9, 12]
    query, document = masked(judge, reads, 2 if truncate is None else 0), judged(judge, [40, 91, 41, 42])
    want = float((late(query) @ late(document).T).max(1).values.sum())
    assert score.outputs.score == pytest.approx(want, abs=1e-4)


def test_pylate_says_whether_masks_are_seen(tmp_path: Path) -> None:
    path = make("modernbert", tmp_path)
    dense(path, 1, matrix(), False, "linear.Identity")
    (path / "tokenizer_config.json").write_text(json.dumps({"mask_token": f"w{MASK}"}))
    for seen, expands in ((True, True), (False, True), (True, False)):
        said = {"query_length": 5, "attend_to_expansion_tokens": seen, "do_query_expansion": expands}
        (path / "config_sentence_transformers.json").write_text(json.dumps(said))
        facts = read_facts("x", path).pooling
        assert facts is not None and facts.late is not None
        read = facts.late.read([7, 8, 9], True, None, 64)
        assert read == ([7, 8, 9, MASK, MASK] if expands else [7, 8, 9])
        assert facts.late.seen_of(read) == (len(read) if seen else 3)
        assert facts.late.read([7, 8], False, None, 64) == [7, 8]


def test_masks_that_nobody_sees_need_a_model_that_can_hide_them(tmp_path: Path) -> None:
    path = make("fnet", tmp_path)
    dense(path, 1, matrix(), False, "linear.Identity")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "architectures": ["FNetForMaskedLM"]}))
    (path / "tokenizer_config.json").write_text(json.dumps({"mask_token": f"w{MASK}"}))
    (path / "config_sentence_transformers.json").write_text('{"query_length": 5}')
    build = Build(mesh=Mesh(), dtype=torch.float32, device=torch.device("cpu"))
    with pytest.raises(CheckpointError, match="takes no mask"):
        models.build(read_facts("x", path), build)


def test_what_fills_queries_up_must_be_a_token(tmp_path: Path) -> None:
    path = colbert(tmp_path)
    (path / "artifact.metadata").write_text('{"query_maxlen": 32}')
    with pytest.raises(CheckpointError, match=r"up to 32 tokens with masks, but .* no mask_token"):
        read_facts("x", path)


def test_a_marker_must_be_a_token(tmp_path: Path) -> None:
    path = colbert(tmp_path)
    (path / "artifact.metadata").write_text('{"query_token_id": "[unused0]"}')
    with pytest.raises(CheckpointError, match=r"no token '\[unused0\]'"):
        read_facts("x", path)


def test_dense_modules_behind_pooling(tmp_path: Path) -> None:
    path, judge = (make("qwen3", tmp_path / name, num_key_value_heads=2, head_dim=16) for name in ("model", "judge"))
    with_modules(path, "lasttoken", normalize=False)
    dense(path, 2, matrix(3, 60), True, "activation.Tanh")
    dense(path, 3, matrix(4, 20, 60), False, "linear.Identity")
    with LLM(str(path), threads=1, max_num_batched_tokens=4) as llm:
        outputs = llm.embed(["w5 w9 w11 w12 w13 w14", "w7"], use_tqdm=False)
        [short] = llm.embed("w7", pooling_params=PoolingParams(dimensions=6), use_tqdm=False)
    for output, text in zip(outputs, ([5, 9, 11, 12, 13, 14], [7]), strict=True):
        first = torch.tanh(judged(judge, text)[-1] @ matrix(3, 60).T + matrix(3, 60)[:, 0])
        assert (torch.tensor(output.outputs.embedding) - first @ matrix(4, 20, 60).T).abs().max() < 1e-4
    assert short.outputs.embedding == pytest.approx(outputs[1].outputs.embedding[:6], abs=1e-5)


@pytest.mark.parametrize(
    ("activation", "says"),
    [("activation.GELU", "GELU is not supported"), ("linear.Identity", "1_Dense.linear takes 40 values and gets 48")],
)
def test_what_does_not_fit_is_told(activation: str, says: str, tmp_path: Path) -> None:
    path = make("bert", tmp_path)
    dense(path, 1, matrix(2, WIDTH, 40), False, activation)
    with pytest.raises(CheckpointError, match=says), LLM(str(path), threads=1):
        pass


def test_a_matrix_must_be_beside_a_colbert(tmp_path: Path) -> None:
    path = make("bert", tmp_path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "architectures": ["HF_ColBERT"]}))
    with pytest.raises(CheckpointError, match="must have a matrix"):
        read_facts("x", path)


def test_the_best_of_the_document_counts_for_each_token_of_the_query() -> None:
    query, document = [1.0, 0.0, 0.0, 2.0], [0.5, 0.5, 3.0, -1.0, 0.0, 1.0]
    assert late_similarity(query, document, [True, True, True]) == 3.0 + 2.0
    assert late_similarity(query, document, [True, False, True]) == 0.5 + 2.0
