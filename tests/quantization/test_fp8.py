"""FP8 checkpoints: DeepSeek's and Qwen's blocks, one scale a tensor, one a row."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from quire.quantization.formats import fp8
from quire.quantization.scheme import Matrix
from tests.quantization.checkpoints import check, inner, stored_bytes, write

pytestmark = pytest.mark.torch


def blocks(weight: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales of blocks, and the values, as DeepSeek's `weight_dequant` makes them."""
    rows, columns = -(-weight.shape[0] // size), -(-weight.shape[1] // size)
    codes, scales = torch.empty(weight.shape, dtype=torch.float8_e4m3fn), torch.empty(rows, columns)
    values = torch.empty(weight.shape)
    for i in range(rows):
        for j in range(columns):
            area = slice(i * size, (i + 1) * size), slice(j * size, (j + 1) * size)
            scales[i, j] = weight[area].abs().max() / 448
            codes[area] = (weight[area] / scales[i, j]).to(torch.float8_e4m3fn)
            values[area] = codes[area].float() * scales[i, j]
    return codes, scales, values


@pytest.mark.parametrize(
    ("size", "kind"), [(128, torch.float32), (48, torch.float32), (128, torch.bfloat16), (128, torch.float8_e8m0fnu)]
)
def test_blocks(tmp_path: Path, size: int, kind: torch.dtype) -> None:
    """Scales as DeepSeek ships them, as Qwen does, and as powers of two."""

    def writer(module: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor] | None:
        if not inner(module):
            return None
        codes, scales, values = blocks(weight, size)
        if kind != torch.float32:
            scales = scales.to(kind)
            each = scales.float().repeat_interleave(size, 0).repeat_interleave(size, 1)
            values = codes.float() * each[: len(weight), : weight.shape[1]]
        return {"weight": codes, "weight_scale_inv": scales}, values

    config = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [size, size]}
    check(*write(tmp_path, config, writer))


def per_tensor(module: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor] | None:
    if not inner(module):
        return None
    scale = weight.abs().max() / 448
    codes = (weight / scale).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": scale, "input_scale": torch.tensor(0.1)}, codes.float() * scale


def test_one_scale_a_tensor_and_memory(tmp_path: Path) -> None:
    quantized, plain, values = write(tmp_path, {"quant_method": "fp8", "activation_scheme": "static"}, per_tensor)
    driver = check(quantized, plain, values)
    assert stored_bytes(driver) < 1.06 * sum(value.numel() for value in values.values())


def test_tensors_without_metadata_are_believed(tmp_path: Path) -> None:
    """What they do not quantize stays as it is."""
    check(
        *(made := write(tmp_path, {}, lambda module, weight: None if "mlp" in module else per_tensor(module, weight)))
    )
    assert not any("mlp" in name for name in made[2])


def test_a_head_without_metadata(tmp_path: Path) -> None:
    def writer(module: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor] | None:
        if not inner(module) and module != "lm_head":
            return None
        scales = weight.abs().amax(1, keepdim=True) / 448
        codes = (weight / scales).to(torch.float8_e4m3fn)
        return {"weight": codes, "weight_scale_inv": scales}, codes.float() * scales

    check(*write(tmp_path, {}, writer))


def test_part_of_a_fused_product_in_full_precision(tmp_path: Path) -> None:
    def writer(module: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor] | None:
        return None if module.endswith("k_proj") else per_tensor(module, weight)

    config = {"quant_method": "fp8", "modules_to_not_convert": [f"model.layers.{i}.self_attn.k_proj" for i in (0, 1)]}
    check(*write(tmp_path, config, writer))


@pytest.mark.parametrize(
    ("skipped", "left"), [("model.layers.0", True), ("layers.0.self_attn", True), ("k_proj", True), ("ayers.0", False)]
)
def test_what_metadata_leaves_out_may_be_a_part_of_the_name(skipped: str, left: bool) -> None:
    form = fp8.make({"quant_method": "fp8", "modules_to_not_convert": [skipped]})
    assert (form.announced(Matrix("model.layers.0.self_attn.k_proj", 64, 128)) is None) is left
    assert form.announced(Matrix("model.layers.1.mlp.up_proj", 64, 128)) is not None


def test_latents_of_deepseek(tmp_path: Path) -> None:
    """Also the matrix that is read by head, whose products go either way."""

    def writer(module: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor] | None:
        if not module.endswith(("_proj", "kv_a_proj_with_mqa")):
            return None
        codes, scales, values = blocks(weight, 16)
        return {"weight": codes, "weight_scale_inv": scales}, values

    config = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 16]}
    sizes = {"head_dim": 8, "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 32, "v_head_dim": 16}
    sizes |= {"qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "first_k_dense_replace": 3}
    check(*write(tmp_path, config, writer, "deepseek_v3", **sizes))
