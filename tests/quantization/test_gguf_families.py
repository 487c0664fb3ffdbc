"""GGUF files of other architectures than Llama: names by the package `gguf`, values as the converter lays them."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from quire.base.errors import CheckpointError
from quire.checkpoint.gguf_folder import unfold
from quire.loading.recipe import weights_of
from quire.messages.state import Retention
from tests.models.checkpoints import make
from tests.models.driver import Driver
from tests.quantization.checkpoints import PROMPTS, SIZES, taken
from tests.quantization.test_gguf import describe_words, turned

gguf = pytest.importorskip("gguf")
pytestmark = pytest.mark.torch
LAYERS = {"layer_types": ["sliding_attention", "sliding_attention"]}
ROPES = {name: {"rope_type": "default", "rope_theta": 10000.0} for name in ("full_attention", "sliding_attention")}
OLD = {"head_dim": ..., "num_key_value_heads": ..., "intermediate_size": ...}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 32, "num_hidden_layers": 2}),
    "gemma3": (
        "gemma3_text",
        {"query_pre_attn_scalar": 32, "num_hidden_layers": 2, **LAYERS, "rope_parameters": ROPES},
    ),
    "phi3": ("phi3", {}),
    "olmo2": ("olmo2", {}),
    "granite": ("granite", {}),
    "starcoder2": ("starcoder2", {}),
    "stablelm": ("stablelm", {"use_qkv_bias": True}),
    "command-r": ("cohere", {"logit_scale": 0.25}),
    "glm4": ("glm4", {"attention_bias": False}),
    "falcon": ("falcon", {**OLD, "num_kv_heads": 1}),
    "falcon 40b": ("falcon", {**OLD, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "gpt2": ("gpt2", {**OLD, "n_embd": 128, "n_inner": 256}),
    "qwen2moe": ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 96, "mlp_only_layers": []}),
}
"""What files call an architecture, and a second model of that name: config.json's name, and sizes."""
KEYS = {
    "rms_norm_eps": "layer_norm_rms_eps", "layer_norm_eps": "layer_norm_eps", "norm_epsilon": "layer_norm_eps",
    "sliding_window": "sliding_window", "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping", "attention_multiplier": "attention_scale",
    "embedding_multiplier": "embedding_scale", "residual_multiplier": "residual_scale", "logits_scaling": "logit_scale",
    "logit_scale": "logit_scale", "use_parallel_residual": "parallel_residual", "head_dim": "key_length",
    "num_hidden_layers": "block_count", "max_position_embeddings": "context_length", "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length", "num_attention_heads": "head_count",
    "num_key_value_heads": "head_count_kv", "num_kv_heads": "head_count_kv", "layer_norm_epsilon": "layer_norm_eps",
    "n_embd": "embedding_length", "n_layer": "block_count", "n_head": "head_count", "n_positions": "context_length",
    "n_inner": "feed_forward_length", "ffn_hidden_size": "feed_forward_length", "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count", "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
}  # fmt: skip
"""Fields of config.json, and what adds them to a file."""


def paired(architecture: str, name: str) -> int | None:
    """The heads of a matrix that files hold in neighbouring pairs: Granite's queries and keys."""
    return {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2]) if architecture == "granite" else None


def laid(architecture: str, name: str, values: np.ndarray) -> np.ndarray:
    """Values in the converter's order: GPT-2's matrices the other way round, Falcon's queries before all keys."""
    if architecture == "gpt2" and values.ndim == 2 and ".c_" in name:
        return values.T
    if architecture.startswith("falcon") and "query_key_value" in name:
        groups = values.reshape(2 if "40b" in architecture else 1, -1, 32, values.shape[1])
        parts = groups[:, :-2], groups[:, -2], groups[:, -1]
        return np.concatenate([part.reshape(-1, values.shape[1]) for part in parts])
    if name.endswith("shared_expert_gate.weight"):
        return values[0]
    return turned(values, paired(architecture, name))


def stacked(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices of experts as one tensor for all of them."""
    made: dict[str, list[Tensor]] = {}
    for name in sorted(tensors):
        made.setdefault(re.sub(r"\.experts\.\d+\.", ".experts.", name), []).append(tensors[name])
    return {name: torch.stack(found) if ".experts." in name else found[0] for name, found in made.items()}


def apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """One tensor for each again."""
    made = {}
    for name, tensor in tensors.items():
        if ".experts." in name:
            made |= {name.replace(".experts.", f".experts.{i}."): expert for i, expert in enumerate(tensor)}
        else:
            made[name] = tensor
    return made


def write(folder: Path, architecture: str, kind: str = "Q8_0", **more: Any) -> tuple[Path, Path]:
    """A file with matrices of `kind`, and a checkpoint of the same values; `more` is in its config.json."""
    family, sizes = CASES[architecture]
    plain = make(family, folder / "plain", **{**SIZES, **sizes, **more})
    tensors = stacked(taken(plain))
    config = json.loads((plain / "config.json").read_text())
    arch = architecture.split()[0]
    writer = gguf.GGUFWriter(folder / "model.gguf", arch)
    for field, key in KEYS.items():
        if config.get(field) is not None:
            getattr(writer, f"add_{key}")(config[field])
    if "rope_parameters" in config:
        rope = config["rope_parameters"]
        rope = rope.get("full_attention", rope)
        writer.add_rope_freq_base(rope["rope_theta"])
        writer.add_rope_dimension_count(int(32 * rope.get("partial_rotary_factor", 1.0)))
    describe_words(writer, config)
    names = gguf.get_tensor_name_map(next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch), 3)
    for name, tensor in tensors.items():
        array = laid(architecture, name, tensor.numpy())
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert target is not None, name
        if not target.startswith("blk.") or array.ndim == 1 or "ffn_gate_inp" in target:
            # Gemma's norms are whole in files.
            whole = array + 1 if arch.startswith("gemma") and name.endswith("norm.weight") else array
            writer.add_tensor(target, whole)
            continue
        number = gguf.GGMLQuantizationType[kind]
        raw = gguf.quants.quantize(array, number)
        writer.add_tensor(target, raw, raw_dtype=number)
        places = laid(architecture, name, np.arange(array.size).reshape(tensor.shape)).reshape(-1)
        kept = np.empty(array.size, np.float32)
        kept[places] = gguf.quants.dequantize(raw, number).reshape(-1)
        tensors[name] = torch.from_numpy(kept.reshape(tensor.shape))
    save_file(apart(tensors), plain / "model.safetensors")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "model.gguf", plain


@pytest.mark.parametrize(("architecture", "dtype"), [("gemma3", "bfloat16"), ("glm4", "bfloat16"), ("phi3", "float16")])
def test_what_float16_does_not_hold_is_in_bfloat16(architecture: str, dtype: str, tmp_path: Path) -> None:
    folder = unfold(write(tmp_path, architecture)[0], tmp_path / "cache")
    assert json.loads((folder / "config.json").read_text())["dtype"] == dtype


def test_windows_of_a_family_that_has_none_are_refused(tmp_path: Path) -> None:
    """OLMo 3 calls itself OLMo 2."""
    with pytest.raises(CheckpointError, match=r"olmo2 with attention.sliding_window 8"):
        unfold(write(tmp_path, "olmo2", sliding_window=8)[0], tmp_path / "cache")


def test_a_window_of_0_is_none(tmp_path: Path) -> None:
    """So say files of Phi-4."""
    ran = Driver(unfold(write(tmp_path, "phi3", sliding_window=0)[0], tmp_path / "cache"), 4)
    assert {state.spec.retention for state in ran.build.states} == {Retention()}


@pytest.mark.parametrize(("architecture", "kind"), [*((name, "Q8_0") for name in CASES), ("gpt2", "F16")])
def test_a_file_is_its_checkpoint(architecture: str, kind: str, tmp_path: Path) -> None:
    file, plain = write(tmp_path, architecture, kind)
    ran, want = Driver(unfold(file, tmp_path / "cache"), 4), Driver(plain, 4)
    assert any(weight.stored for weight in weights_of(ran.model))
    for ours, theirs in zip(ran.generate(PROMPTS, 6), want.generate(PROMPTS, 6), strict=True):
        assert ours.tokens == theirs.tokens
        assert (ours.all_logits() - theirs.all_logits()).abs().max() < 1e-4
