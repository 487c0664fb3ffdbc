"""Experts in quantized checkpoints: a tensor for each as ModelOpt and GPTQ hold them, stacks of MXFP4, and online."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from quire.checkpoint.facts import ModelFacts
from quire.layers.build import Build
from quire.layers.experts import matrices
from quire.layers.moe import MoePlan
from quire.loading import load, opened
from quire.parallel.mesh import Mesh
from tests.models.driver import Driver
from tests.quantization import test_gptq_awq, test_modelopt
from tests.quantization.checkpoints import PROMPTS, PROVIDERS, check, write

pytestmark = pytest.mark.torch
SIZES = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128, "mlp_only_layers": []}


def apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Stacks of experts as published checkpoints have them: a tensor for each."""
    made: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        head, dot, last = name.rpartition(".experts.")
        if not dot or tensor.dim() != 3:
            made[name] = tensor
            continue
        for i, expert in enumerate(tensor):
            names = ("gate_proj", "up_proj") if last == "gate_up_proj" else ("down_proj",)
            for module, part in zip(names, expert.chunk(len(names)), strict=True):
                made[f"{head}.experts.{i}.{module}.weight"] = part.contiguous()
    return made


@pytest.mark.parametrize("kind", ["nvfp4", "gptq"])
def test_a_tensor_for_each(kind: str, tmp_path: Path) -> None:
    def writer(module: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor] | None:
        if not module.endswith("_proj"):
            return None
        if kind == "nvfp4":
            return test_modelopt.nvfp4(module, weight)
        return test_gptq_awq.gptq(weight, 4, 32, act=False, symmetric=False, less=1)

    config = {"quant_method": "modelopt", "quant_algo": "NVFP4"} if kind == "nvfp4" else {"quant_method": "gptq"}
    quantized, plain, values = write(tmp_path, config, writer, "qwen3_moe", change=apart, **SIZES)
    assert any("experts.3.down_proj" in name for name in values)
    driver = check(quantized, plain, values)
    assert driver.build.provider_names()["stored_moe"] == "reference"
    for providers in PROVIDERS:
        served = Driver(quantized, 4, providers).build.provider_names()["stored_moe"]
        assert served == (providers or ["reference"])[0]


@pytest.mark.parametrize("name", ["int8", "int4", "nvfp4"])
def test_online(name: str, tmp_path: Path) -> None:
    _, plain, _ = write(tmp_path, {}, lambda module, weight: None, "qwen3_moe", change=apart, **SIZES)
    driver = Driver(plain, 4, quantization=name)
    assert all(weight.stored for key, weight in driver.model.named_parameters() if "gate_up" in key)
    for sequence in driver.generate(PROMPTS, 3):
        assert sequence.all_logits().isfinite().all()


@pytest.mark.parametrize(("rank", "size"), [(0, 1), (0, 2), (1, 2)])
def test_stacks_of_mxfp4(rank: int, size: int, tmp_path: Path) -> None:
    """gpt-oss: rows of gates and ups in turns."""
    experts, hidden, inner = 3, 96, 64
    tensors, values = {}, {}
    for name, rows, columns in (("gate_up_proj", 2 * inner, hidden), ("down_proj", hidden, inner)):
        made = [test_modelopt.mxfp4("", torch.randn(rows, columns)) for _ in range(experts)]
        values[name] = torch.stack([value for _, value in made])
        packed = torch.stack([stored["weight"] for stored, _ in made])
        tensors[f"experts.{name}_blocks"] = packed.view(experts, rows, columns // 32, 16)
        tensors[f"experts.{name}_scales"] = torch.stack([stored["weight_scale"] for stored, _ in made])
    save_file(tensors, tmp_path / "model.safetensors")
    told = ModelFacts(
        name="x", path=str(tmp_path), config={}, model_type="gpt_oss", dtype="float32", context_len=8, vocab_size=8,
        eos_token_ids=[], generation_config={}, chat_template=None, quantization={"quant_method": "mxfp4"},
    )  # fmt: skip
    checkpoint = opened(told)
    mesh = Mesh(rank, size)
    b = Build(mesh, torch.float32, torch.device("cpu"), checkpoint=checkpoint.quantized)
    plan = MoePlan(hidden, inner, experts, 2, True)
    model = nn.Module()
    model.gate_up, model.down = matrices(b / "experts", plan, "woven")
    load(model, checkpoint, mesh)
    mine = slice(rank * inner // size, (rank + 1) * inner // size)
    gates, ups = values["gate_up_proj"][:, 0::2][:, mine], values["gate_up_proj"][:, 1::2][:, mine]
    for weight, want in ((model.gate_up, torch.cat([gates, ups], 1)), (model.down, values["down_proj"][..., mine])):
        assert weight.stored is not None
        found = weight.stored.rows(weight.data, torch.arange(weight.stored.outputs))
        assert torch.equal(found, want.flatten(0, 1))
        assert weight.nbytes * 8 < 4.3 * want.numel()
