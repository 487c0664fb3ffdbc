"""A quantized checkpoint through the whole engine, with the compiled kernels and with the reference."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import quire
from tests.marks import needs_native
from tests.quantization import test_gptq_awq, test_modelopt
from tests.quantization.checkpoints import inner, write

pytestmark = pytest.mark.torch
OPTIONS = {"device": "cpu", "kv_cache_memory_bytes": 1 << 22, "log_level": "warning", "dtype": "float32"}


def tokens(folder: Path, **options: object) -> list[int]:
    with quire.LLM(str(folder), **OPTIONS, **options) as llm:
        params = quire.SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
        [output] = llm.generate([{"prompt_token_ids": [5, 9, 11, 3, 90]}], params, use_tqdm=False)
        return list(output.outputs[0].token_ids)


@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_tokens_are_those_of_the_values(kernels: str, tmp_path: Path) -> None:
    writer = lambda module, weight: test_modelopt.nvfp4(module, weight) if inner(module) else None  # noqa: E731
    quantized, plain, _ = write(tmp_path, {"quant_method": "modelopt", "quant_algo": "NVFP4"}, writer)
    assert tokens(quantized, kernels=kernels) == tokens(plain, kernels=kernels)


@needs_native
def test_integers_use_the_compiled_packing(tmp_path: Path) -> None:
    def writer(module: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor] | None:
        return test_gptq_awq.gptq(weight, 4, 32, act=False, symmetric=True, less=1) if inner(module) else None

    quantized, _, _ = write(tmp_path, {"quant_method": "gptq", "bits": 4, "group_size": 32}, writer)
    from tests.models.driver import Driver

    packed, plain = Driver(quantized, 4, ["cpu"]), Driver(quantized, 4)
    for ours, theirs in zip(packed.model.parameters(), plain.model.parameters(), strict=True):
        if theirs.stored is None:
            continue
        ids = torch.arange(theirs.stored.outputs)
        assert ours.stored is not None and type(ours.stored).__name__ == "Grouped"
        assert torch.equal(ours.stored.rows(ours.data, ids), theirs.stored.rows(theirs.data, ids))


def test_dummy_weights_of_a_quantized_checkpoint(tmp_path: Path) -> None:
    config = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    quantized, _, _ = write(tmp_path, config, lambda module, weight: None)
    (quantized / "model.safetensors").unlink()
    assert len(tokens(quantized, load_format="dummy")) == 8
