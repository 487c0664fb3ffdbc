"""Reward models: a layer and scores for every token, in chunks."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from quire import LLM
from quire.messages.pooling import PoolingParams
from tests.pooling.checkpoints import make
from tests.pooling.judge import judged

pytestmark = pytest.mark.torch


def reward(folder: Path, architecture: str, labels: int) -> tuple[Path, dict[str, Tensor]]:
    path = make("qwen2", folder, num_key_value_heads=2)
    generator = torch.Generator().manual_seed(4)
    shapes = {
        "score.0.weight": (48, 48),
        "score.0.bias": (48,),
        "score.2.weight": (labels, 48),
        "score.2.bias": (labels,),
    }
    head = {name: torch.randn(*shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    tensors = {f"model.{name}": tensor for name, tensor in load_file(path / "model.safetensors").items()}
    save_file({**tensors, **head}, path / "model.safetensors")
    config = json.loads((path / "config.json").read_text())
    for name in ("id2label", "label2id", "num_labels"):
        config.pop(name, None)
    (path / "config.json").write_text(json.dumps({**config, "architectures": [architecture]}))
    return path, head


@pytest.mark.parametrize(("architecture", "labels"), [("Qwen2ForRewardModel", 1), ("Qwen2ForProcessRewardModel", 2)])
def test_every_token_is_scored(architecture: str, labels: int, tmp_path: Path) -> None:
    path, head = reward(tmp_path / "reward", architecture, labels)
    judge = make("qwen2", tmp_path / "judge", num_key_value_heads=2)
    text = [5, 9, 11, 3, 90, 17, 40, 41, 8]
    inner = torch.relu(judged(judge, text) @ head["score.0.weight"].T + head["score.0.bias"])
    want = inner @ head["score.2.weight"].T + head["score.2.bias"]
    with LLM(str(path), threads=1, max_num_batched_tokens=4, max_num_seqs=2) as llm:
        [raw] = llm.reward([text], use_tqdm=False)
        [made] = llm.encode([text], PoolingParams(), use_tqdm=False)
    assert (torch.tensor(raw.outputs.data) - want).abs().max() < 1e-4
    likely = want if labels == 1 else want.softmax(-1)
    assert (torch.tensor(made.outputs.data) - likely).abs().max() < 1e-4
