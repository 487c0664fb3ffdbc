"""Quantizing to fp8, nvfp4 and mxfp4 while weights load: what is lost, what is held, what is said."""

from pathlib import Path

import pytest
import torch

from quire.ops.samples import normal
from quire.quantization.checkpoint import ONLINE
from quire.quantization.scaled import Form, Scaled
from tests.models.checkpoints import make
from tests.models.driver import Driver
from tests.quantization.checkpoints import PROMPTS, SIZES

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
