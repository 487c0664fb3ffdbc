"""Checkpoints of larger models, and of families that stack their experts, as those publish them who quantize them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.models.driver import Driver
from tests.quantization.checkpoints import check, inner, write
from tests.quantization.test_fp8 import per_tensor

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(("old", "new"), [("", "language_model."), ("model.", "model.language_model.")])
def test_a_language_model_within_a_larger_one(old: str, new: str, tmp_path: Path) -> None:
    """Metadata lists modules by the names of the whole: what it leaves out is not quantized while it is read."""
    kept = "model.layers.0.mlp.down_proj"
    folder, plain, values = write(
        tmp_path, {}, lambda module, weight: None if module == kept else per_tensor(module, weight)
    )
    tensors = load_file(folder / "model.safetensors")
    moved = {new + name.removeprefix(old) if name.startswith(old) else name: tensors[name] for name in tensors}
    beside = {name: torch.zeros(2) for name in ("vision_tower.layers.0.q.weight", "multi_modal_projector.bias")}
    save_file(moved | beside, folder / "model.safetensors")
    told = {"quant_method": "fp8", "modules_to_not_convert": ["vision_tower", f"{new}{kept.removeprefix(old)}"]}
    config = {"model_type": "mistral3", "text_config": json.loads((plain / "config.json").read_text())}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": told}))
    driver = check(folder, plain, values)
    assert driver.build.checkpoint is not None and not driver.build.checkpoint.notes()
    assert kept not in values and len(values) == 13


def test_experts_one_by_one_of_a_family_that_stacks_them(tmp_path: Path) -> None:
    """Llama 4, whose stacks llm-compressor takes apart."""

    def apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        made: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            head, dot, last = name.rpartition(".experts.")
            if not dot:
                made[name] = tensor
                continue
            names = ("gate_proj", "up_proj") if last == "gate_up_proj" else ("down_proj",)
            for i, expert in enumerate(tensor):
                for module, part in zip(names, expert.T.chunk(len(names)), strict=True):
                    made[f"{head}.experts.{i}.{module}.weight"] = part.contiguous()
        return made

    def writer(module: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor] | None:
        if ".experts." not in module or not inner(module):
            return None
        scales = weight.abs().amax(1, keepdim=True) / 448
        codes = (weight / scales).to(torch.float8_e4m3fn)
        return {"weight": codes, "weight_scale": scales}, codes.float() * scales

    sizes = {"num_local_experts": 2, "num_hidden_layers": 1, "no_rope_layers": [1], "moe_layers": [0]}
    config = {"quant_method": "compressed-tensors", "format": "float-quantized", "ignore": ["re:.*router"]}
    folder, plain, values = write(tmp_path, config, writer, "llama4_text", change=apart, **sizes)
    tensors = load_file(plain / "model.safetensors")
    stacks = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
    head = "model.layers.0.feed_forward.experts"
    for name, parts in stacks.items():
        each = [torch.cat([tensors.pop(f"{head}.{i}.{part}.weight") for part in parts]).T for i in range(2)]
        tensors[f"{head}.{name}"] = torch.stack(each)
    save_file(tensors, plain / "model.safetensors")
    check(folder, plain, values)
    assert len(values) == 6


def test_tables_and_heads_stay_as_they_are_whatever_a_family_calls_them(tmp_path: Path) -> None:
    plain: dict[str, Any] = {"head_dim": ..., "num_key_value_heads": ...}
    told = {"quant_method": "modelopt", "quant_algo": "FP8"}
    folder, _, _ = write(tmp_path, told, lambda module, weight: None, "gpt_neox", **plain)
    found = Driver(folder, 4).build.checkpoint
    assert found is not None
    last = {name.rsplit(".", 1)[-1] for name in found.announced}
    assert last == {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}
