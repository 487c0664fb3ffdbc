"""Quantizing to fp8, nvfp4 and mxfp4 while weights load: what is lost, what is held, what is said."""

from pathlib import Path

import pytest
import torch

from quire.ops.samples import normal
from quire.parallel.mesh import Mesh
from quire.platforms import native
from quire.quantization.checkpoint import ONLINE
from quire.quantization.scaled import Form, Scaled
from tests.models.checkpoints import make
from tests.models.driver import Driver
from tests.quantization.checkpoints import PROMPTS, PROVIDERS, SIZES

pytestmark = pytest.mark.torch
# Half a step of the type against the largest value of a group: 2 ** -4 of a value for e4m3; 1 / 6 of the largest for
# e2m1, twice that where the scale is rounded up to a power of two.
BOUNDS = {"fp8": 0.04, "nvfp4": 0.13, "mxfp4": 0.16}


@pytest.mark.parametrize("name", sorted(BOUNDS))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_stay_near(name: str, dtype: str) -> None:
    storage = Scaled.of(24, 160, ONLINE[name], dtype, "cpu")
    data, values = storage.allocate(), normal(dtype, 24, 160)
    storage.put(data, 10, values[10:])
    storage.put(data, 0, values[:10])
    found = storage.rows(data, torch.arange(24))
    assert found.dtype == values.dtype
    lost = (found.float() - values.float()).norm() / values.float().norm()
    assert 1e-3 < lost < BOUNDS[name]
    assert torch.equal(storage.rows(data, torch.tensor([23, 0])), found[[23, 0]])


@pytest.mark.parametrize("form", [*ONLINE.values(), Form("uint4b8", 32), Form("nf4", 64), Form("fp6_e2m3", 32, "e8m0")])
def test_what_is_representable_survives(form: Form) -> None:
    storage = Scaled.of(6, 128, form, "float32", "cpu")
    data = storage.allocate()
    assert not storage.rows(data, torch.arange(6)).any()
    storage.put(data, 0, normal("float32", 6, 128))
    once = storage.rows(data, torch.arange(6))
    block = storage.quantize(once)
    again = storage.allocate()
    storage.put_block(again, 0, block)
    assert (storage.rows(again, torch.arange(6)) - once).abs().max() <= 0.2 * once.abs().max()


@pytest.mark.parametrize("providers", [*PROVIDERS, *([["cpu"]] if native.is_built() else [])])
@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
@pytest.mark.parametrize("name", ["int8", "int4", *ONLINE])
def test_two_ranks_hold_what_one_does(name: str, family: str, providers: list[str], tmp_path: Path) -> None:
    # Halves of rows end with a group of every form.
    sizes = {**SIZES, "hidden_size": 256, "num_attention_heads": 8, "intermediate_size": 256, "num_hidden_layers": 1}
    if family == "qwen3_moe":
        sizes |= {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 256, "mlp_only_layers": []}
    path = make(family, tmp_path, **sizes)
    whole, *halves = (
        dict(Driver(path, 4, providers, mesh, quantization=name).model.named_parameters())
        for mesh in (Mesh(), Mesh(0, 2), Mesh(1, 2))
    )
    cut = [key for key, weight in whole.items() if weight.recipe.parts[0].cut == 1]
    assert len(cut) == 2
    for key in cut:
        one, *two = (
            weight.stored.rows(weight.data, torch.arange(weight.stored.outputs))
            for weight in (whole[key], *(half[key] for half in halves))
        )
        assert torch.equal(torch.cat(two, 1), one), key


@pytest.mark.parametrize("name", sorted(BOUNDS))
def test_a_model_holds_only_the_quantized_bytes(name: str, tmp_path: Path) -> None:
    path = make("llama", tmp_path, **{**SIZES, "hidden_size": 512, "intermediate_size": 512, "num_hidden_layers": 1})
    driver = Driver(path, 4, quantization=name)
    inner = [
        weight for weight in driver.model.parameters() if weight.stored and "lm_head" not in weight.recipe.parts[0].name
    ]
    assert len(inner) == 4
    values = sum(weight.stored.outputs * weight.stored.inputs for weight in inner)
    bits = {"fp8": 8.1, "nvfp4": 4.6, "mxfp4": 4.3}[name]
    assert sum(weight.nbytes for weight in inner) * 8 <= bits * values
    for sequence in driver.generate(PROMPTS, 3):
        assert sequence.all_logits().isfinite().all()
