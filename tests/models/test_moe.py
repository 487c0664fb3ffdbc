"""Layers of experts: both ways of storing them, and random weights that keep a full batch of experts busy."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from quire import loading, models
from quire.base.errors import CheckpointError
from quire.checkpoint.read import read_facts
from quire.layers.build import Build
from quire.layers.moe import MoE, MoePlan
from quire.layers.norm import RMSNorm
from quire.loading.recipe import weights_of
from quire.ops.moe import route
from quire.parallel.mesh import Mesh
from tests.models.checkpoints import make

pytestmark = pytest.mark.torch


def new_build(mesh: Mesh | None = None) -> Build:
    return Build(mesh or Mesh(), torch.float32, torch.device("cpu"))


def names(folder: Path) -> set[str]:
    found: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            found |= set(opened.keys())
    return found


@pytest.mark.parametrize("mesh", [Mesh(), Mesh(0, 2), Mesh(1, 2)], ids=str)
def test_experts_load_from_one_tensor_each_and_from_one_for_all(mesh: Mesh, tmp_path: Path) -> None:
    single = make("qwen3_moe", tmp_path / "single")
    model = AutoModelForCausalLM.from_pretrained(single, dtype=torch.float32)
    model.save_pretrained(tmp_path / "fused", save_original_format=False)
    assert "model.layers.0.mlp.experts.5.down_proj.weight" in names(single)
    assert "model.layers.0.mlp.experts.gate_up_proj" in names(tmp_path / "fused")
    loaded = []
    for folder in (single, tmp_path / "fused"):
        facts = read_facts("tiny", folder)
        built = models.build(facts, new_build(mesh))
        loading.load(built, loading.opened(facts), mesh)
        loaded.append(weights_of(built))
    for one, other in zip(*loaded, strict=True):
        assert torch.equal(one, other)


def test_more_experts_per_token_than_there_are_is_refused(tmp_path: Path) -> None:
    folder = make("qwen3_moe", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_experts_per_tok": 7}))
    with pytest.raises(CheckpointError, match="num_experts_per_tok=7 is more than the 6 experts"):
        models.build(read_facts("tiny", folder), new_build())


def test_random_routers_spread_a_batch_over_the_experts() -> None:
    # The router and the norm before it of Qwen3-30B-A3B; experts of one inner value, which routing never sees.
    layer = MoE(new_build() / "mlp", MoePlan(hidden=2048, inner=1, experts=128, top_k=8, normalize=True))
    norm = RMSNorm(new_build() / "norm", 2048, 1e-6)
    loading.fill_dummy(layer, 0, Mesh())
    loading.fill_dummy(norm, 0, Mesh())
    distinct = []
    for seed in range(8):
        x = norm.forward(torch.randn(64, 2048, generator=torch.Generator().manual_seed(seed)))
        _weights, ids = route(layer.router.forward(x), layer.spec.route)
        distinct.append(len(ids.unique()))
    assert sum(distinct) / len(distinct) >= 120
    gate = layer.gate_up.view(128, 2, 2048)
    assert len(gate[:, :, 0].unique()) == 256, "experts differ"


@pytest.mark.parametrize("layer", [3, 4])
def test_layers_that_predict_further_tokens_are_left_alone(layer: int, tmp_path: Path) -> None:
    folder, name = make("glm4_moe", tmp_path), f"model.layers.{layer}.eh_proj.weight"
    save_file({name: torch.zeros(4, 8)}, folder / "further.safetensors")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"][name] = "further.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    facts = read_facts("tiny", folder)
    assert (facts.config["num_hidden_layers"], facts.config["num_nextn_predict_layers"]) == (3, 1)
    built = models.build(facts, new_build())
    if layer == 3:
        loading.load(built, loading.opened(facts), Mesh())
    else:
        with pytest.raises(CheckpointError, match=r"1 left over: model\.layers\.4\.eh_proj"):
            loading.load(built, loading.opened(facts), Mesh())
