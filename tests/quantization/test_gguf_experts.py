"""Mixtures of experts in GGUF files, whose gates, ups and downs are a stack each; types that are refused by name."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from quire.base.errors import CheckpointError
from quire.checkpoint.gguf import read_gguf
from quire.checkpoint.gguf_folder import unfold
from tests.models.checkpoints import make
from tests.quantization.checkpoints import check, taken
from tests.quantization.test_experts import apart
from tests.quantization.test_gguf import BIG, blocks_of, describe, describe_words

gguf = pytest.importorskip("gguf")
pytestmark = pytest.mark.torch
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate": "ffn_gate_inp",
}  # fmt: skip
ENDS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
STACKS = {"gate_proj": "ffn_gate_exps", "up_proj": "ffn_up_exps", "down_proj": "ffn_down_exps"}
EXPERTS = 3


def file_of(folder: Path, kind: str) -> tuple[Path, Path, dict[str, Tensor]]:
    """A file, the same values in full precision, and the values of the experts' matrices."""
    sizes = {"num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": 256, "mlp_only_layers": []}
    plain = make("qwen3_moe", folder / "plain", **{**BIG, **sizes, "norm_topk_prob": True})
    tensors, values = apart(taken(plain)), {}
    config = json.loads((plain / "config.json").read_text())
    writer = gguf.GGUFWriter(folder / "model.gguf", "qwen3moe")
    describe(writer, config)
    describe_words(writer, config)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(2)
    writer.add_expert_feed_forward_length(256)
    number = gguf.GGMLQuantizationType[kind]
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        inner = module.removeprefix("model.layers.0.")
        if inner in NAMES or module in ENDS:
            writer.add_tensor(f"{ENDS.get(module) or f'blk.0.{NAMES[inner]}'}.weight", tensor.numpy())
    for last, short in STACKS.items():
        modules = [f"model.layers.0.mlp.experts.{i}.{last}" for i in range(EXPERTS)]
        raw = [blocks_of(kind, tensors[f"{module}.weight"].numpy()) for module in modules]
        writer.add_tensor(f"blk.0.{short}.weight", np.stack(raw), raw_dtype=number)
        for module, blocks in zip(modules, raw, strict=True):
            back = torch.from_numpy(gguf.quants.dequantize(blocks, number).copy())
            tensors[f"{module}.weight"] = back.view_as(tensors[f"{module}.weight"])
        stack = torch.cat([tensors[f"{module}.weight"] for module in modules])
        values[f"model.layers.0.mlp.experts.{last}"] = stack
    save_file(tensors, plain / "model.safetensors")
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return folder / "model.gguf", plain, values


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q6_K"])
def test_stacks_of_experts(kind: str, tmp_path: Path) -> None:
    file, plain, values = file_of(tmp_path, kind)
    check(unfold(file, tmp_path / "cache"), plain, values)


def test_what_is_not_read_is_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tensor("output.weight", np.zeros((4, 136), np.uint8), raw_dtype=gguf.GGMLQuantizationType.IQ4_XS)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    assert struct.pack("<I", gguf.GGMLQuantizationType.IQ4_XS) in (tmp_path / "model.gguf").read_bytes()
    with pytest.raises(CheckpointError, match=r"output.weight has ggml's type IQ4_XS, which is not supported; take a"):
        read_gguf(tmp_path / "model.gguf")
