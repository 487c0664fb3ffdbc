"""ModelOpt exports, written here after their published layout: NVFP4, FP8, MXFP8, MXFP4, AWQ, INT8, mixtures."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from quire import models
from quire.base.errors import CheckpointError
from quire.checkpoint.read import read_facts
from tests.models.driver import Driver
from tests.quantization.checkpoints import check, inner, stored_bytes, write

pytestmark = pytest.mark.torch
MAGNITUDES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
Made = tuple[dict[str, Tensor], Tensor]


def fp4_codes(values: Tensor) -> Tensor:
    """The nearest magnitude's number, and 8 for a sign."""
    return (values.abs()[..., None] - MAGNITUDES).abs().argmin(-1) + 8 * (values < 0)


def fp4_values(codes: Tensor) -> Tensor:
    return MAGNITUDES[codes % 8] * torch.where(codes >= 8, -1.0, 1.0)


def nvfp4(module: str, weight: Tensor) -> Made:
    scale_2 = weight.abs().max() / (6 * 448)
    blocks = weight.view(len(weight), -1, 16)
    scale = (blocks.abs().amax(2) / 6 / scale_2).to(torch.float8_e4m3fn)
    used = (scale.float() * scale_2)[..., None]
    codes = fp4_codes(blocks / used)
    pairs = codes.view(len(weight), -1, 2)
    packed = (pairs[..., 0] + 16 * pairs[..., 1]).to(torch.uint8)
    tensors = {"weight": packed, "weight_scale": scale, "weight_scale_2": scale_2, "input_scale": torch.tensor(0.5)}
    return tensors, (fp4_values(codes) * used).view(weight.shape)


def fp8(module: str, weight: Tensor) -> Made:
    scale = weight.abs().max() / 448
    codes = (weight / scale).to(torch.float8_e4m3fn)
    tensors = {"weight": codes, "weight_scale": scale, "input_scale": torch.tensor(0.5)}
    if module.endswith(("k_proj", "v_proj")):
        tensors[f"{module[-6]}_scale"] = torch.tensor(0.01)
    return tensors, codes.float() * scale


def fp8_rows(module: str, weight: Tensor) -> Made:
    scale = weight.abs().amax(1) / 448
    codes = (weight / scale[:, None]).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": scale}, codes.float() * scale[:, None]


def fp8_blocks(module: str, weight: Tensor) -> Made:
    rows, columns = -(-weight.shape[0] // 128), -(-weight.shape[1] // 128)
    scale = torch.rand(rows, 1, columns, 1) / 100 + 0.001
    each = scale[:, 0, :, 0].repeat_interleave(128, 0).repeat_interleave(128, 1)
    each = each[: weight.shape[0], : weight.shape[1]]
    codes = (weight / each).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": scale}, codes.float() * each


def exponents(blocks: Tensor, largest: float) -> tuple[Tensor, Tensor]:
    stored = (blocks.abs().amax(2) / largest).log2().ceil().int() + 127
    return stored.to(torch.uint8), torch.pow(2.0, stored.float() - 127)[..., None]


def mxfp8(module: str, weight: Tensor) -> Made:
    blocks = weight.view(len(weight), -1, 32)
    stored, used = exponents(blocks, 448)
    codes = (blocks / used).to(torch.float8_e4m3fn)
    return {"weight": codes.view(weight.shape), "weight_scale": stored}, (codes.float() * used).view(weight.shape)


def mxfp4(module: str, weight: Tensor) -> Made:
    blocks = weight.view(len(weight), -1, 32)
    stored, used = exponents(blocks, 6)
    codes = fp4_codes(blocks / used)
    pairs = codes.view(len(weight), -1, 2)
    packed = (pairs[..., 0] + 16 * pairs[..., 1]).to(torch.uint8)
    return {"weight": packed, "weight_scale": stored}, (fp4_values(codes) * used).view(weight.shape)


def awq(module: str, weight: Tensor) -> Made:
    smoothing = torch.rand(weight.shape[1]) + 0.5
    blocks = (weight / smoothing).view(len(weight), -1, 64)
    scale = blocks.abs().amax(2) / 7
    codes = (blocks / scale[..., None]).round().clamp(-8, 7).int().view(weight.shape)
    packed = ((codes[0::2] & 15) | (codes[1::2] & 15) << 4).to(torch.uint8)
    values = (codes.view(blocks.shape) * scale[..., None]).view(weight.shape) * smoothing
    return {"weight": packed, "weight_scale": scale, "pre_quant_scale": smoothing}, values


def int8(module: str, weight: Tensor) -> Made:
    scale = weight.abs().amax(1) / 127
    codes = (weight / scale[:, None]).round().to(torch.int8)
    return {"weight": codes, "weight_scale": scale}, codes.float() * scale[:, None]


WRITERS: dict[str, Any] = {
    "NVFP4": nvfp4,
    "FP8": fp8,
    "FP8_PER_CHANNEL_PER_TOKEN": fp8_rows,
    "FP8_PB_WO": fp8_blocks,
    "MXFP8": mxfp8,
    "MXFP4": mxfp4,
    "W4A16_AWQ": awq,
    "W8A16": int8,
}


@pytest.mark.parametrize(("algorithm", "head"), [*((name, True) for name in sorted(WRITERS)), ("NVFP4", False)])
def test_every_algorithm(algorithm: str, head: bool, tmp_path: Path) -> None:
    def writer(module: str, weight: Tensor) -> Made | None:
        chosen = inner(module) or (head and module == "lm_head")
        return WRITERS[algorithm](module, weight) if chosen else None

    config = {"quant_method": "modelopt", "quant_algo": algorithm, "exclude_modules": ["lm_head", "model.embed*"]}
    check(*write(tmp_path, config, writer))


def test_a_quantized_head_counts_for_more_than_tied_embeddings(tmp_path: Path) -> None:
    writer = lambda module, weight: nvfp4(module, weight) if inner(module) else None  # noqa: E731
    config = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    folder, plain, values = write(tmp_path, config, writer, tie_word_embeddings=True)
    tensors, values["lm_head"] = nvfp4("lm_head", load_file(plain / "model.safetensors")["model.embed_tokens.weight"])
    for path, head in ((folder, tensors), (plain, {"weight": values["lm_head"]})):
        own = load_file(path / "model.safetensors") | {f"lm_head.{ending}": value for ending, value in head.items()}
        save_file(own, path / "model.safetensors")
    told = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps({**told, "tie_word_embeddings": False}))
    check(folder, plain, values)


def test_nvfp4_stays_small(tmp_path: Path) -> None:
    # Rows as long as in served models: a factor for each row is nothing beside them.
    sizes = {"hidden_size": 1024, "intermediate_size": 1024, "num_hidden_layers": 1}
    writer = lambda module, weight: nvfp4(module, weight) if inner(module) else None  # noqa: E731
    config = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    quantized, _, values = write(tmp_path, config, writer, **sizes)
    in_bfloat16 = 2 * sum(value.numel() for value in values.values())
    assert stored_bytes(Driver(quantized, 4)) <= 0.285 * in_bfloat16


def test_legacy_file_and_mixed_precision(tmp_path: Path) -> None:
    def writer(module: str, weight: Tensor) -> Made | None:
        if module.endswith("down_proj"):
            return nvfp4(module, weight)
        return fp8(module, weight) if inner(module) else None

    quantized, plain, values = write(tmp_path, {}, writer)
    layers = {name: {"quant_algo": "NVFP4" if "down" in name else "FP8"} for name in values}
    told = {"quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": "FP8", "quantized_layers": layers}
    (quantized / "hf_quant_config.json").write_text(json.dumps({"quantization": told}))
    check(quantized, plain, values)


def test_an_unknown_algorithm_names_those_that_are_supported(tmp_path: Path) -> None:
    quantized, _, _ = write(tmp_path, {"quant_method": "modelopt", "quant_algo": "FP3"}, lambda module, weight: None)
    with pytest.raises(CheckpointError, match=r"quant_algo 'FP3' is not supported; supported: FP8, .*NVFP4.*MIXED"):
        Driver(quantized, 4)


def test_what_is_announced_over_full_precision_is_carried_out(tmp_path: Path) -> None:
    config = {"quant_method": "modelopt", "quant_algo": "NVFP4", "exclude_modules": ["*v_proj"]}
    quantized, _, _ = write(tmp_path, config, lambda module, weight: None)
    driver = Driver(quantized, 4)
    assert driver.build.checkpoint is not None
    [note] = driver.build.checkpoint.notes()
    assert note.startswith("12 matrices are of full precision though the checkpoint calls them modelopt")
    stored = [weight for weight in driver.model.parameters() if weight.stored]
    assert len(stored) == 8, "fused products and the others"
    models.build(read_facts("tiny", quantized), driver.build.imagined())
    assert driver.build.checkpoint.notes() == [note], "a model of which only names are wanted counts nothing again"


def test_tensors_that_nothing_explains_are_named(tmp_path: Path) -> None:
    def writer(module: str, weight: Tensor) -> Made | None:
        made = nvfp4(module, weight) if inner(module) else None
        if made and module.endswith("layers.0.mlp.down_proj"):
            made[0]["weight_wonder"] = torch.zeros(1)
        return made

    quantized, _, _ = write(tmp_path, {"quant_method": "modelopt", "quant_algo": "NVFP4"}, writer)
    with pytest.raises(CheckpointError, match=r"left over: model.layers.0.mlp.down_proj.weight_wonder"):
        Driver(quantized, 4)


@pytest.mark.parametrize("asked", ["modelopt", "modelopt_fp4"])
def test_accepted_names(asked: str, tmp_path: Path) -> None:
    writer = lambda module, weight: nvfp4(module, weight) if inner(module) else None  # noqa: E731
    quantized, plain, _ = write(tmp_path, {"quant_method": "modelopt", "quant_algo": "NVFP4"}, writer)
    Driver(quantized, 4, quantization=asked)
    with pytest.raises(CheckpointError, match="quantization=awq: the checkpoint is modelopt"):
        Driver(quantized, 4, quantization="awq")
    with pytest.raises(CheckpointError, match="quantization=awq: the checkpoint is of full precision"):
        Driver(plain, 4, quantization="awq")
