"""GGUF files of other architectures than Llama: names by the package `gguf`, values as the converter lays them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from quire.base.errors import CheckpointError
from quire.checkpoint.gguf import unfold
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
}
"""What files call an architecture: config.json's name, and sizes."""
KEYS = {
    "rms_norm_eps": "layer_norm_rms_eps", "layer_norm_eps": "layer_norm_eps", "norm_epsilon": "layer_norm_eps",
    "sliding_window": "sliding_window", "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping", "attention_multiplier": "attention_scale",
    "embedding_multiplier": "embedding_scale", "residual_multiplier": "residual_scale", "logits_scaling": "logit_scale",
    "logit_scale": "logit_scale", "use_parallel_residual": "parallel_residual", "head_dim": "key_length",
    "num_hidden_layers": "block_count", "max_position_embeddings": "context_length", "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length", "num_attention_heads": "head_count",
    "num_key_value_heads": "head_count_kv",
}  # fmt: skip
"""Fields of config.json, and what adds them to a file."""


def paired(architecture: str, name: str) -> int | None:
    """The heads of a matrix that files hold in neighbouring pairs: Granite's queries and keys."""
    return {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2]) if architecture == "granite" else None


def laid(architecture: str, name: str, tensor: Tensor) -> Any:
    """Values as the converter puts them: Gemma's norms whole."""
    if architecture.startswith("gemma") and name.endswith("norm.weight"):
        return (tensor + 1).numpy()
    return turned(tensor.numpy(), paired(architecture, name))


def write(folder: Path, architecture: str, **more: Any) -> tuple[Path, Path]:
    """A file with matrices in 8 bits, and a checkpoint of the same values; `more` is in its config.json."""
    family, sizes = CASES[architecture]
    plain = make(family, folder / "plain", **{**SIZES, **sizes, **more})
    tensors = taken(plain)
    config = json.loads((plain / "config.json").read_text())
    writer = gguf.GGUFWriter(folder / "model.gguf", architecture)
    for field, key in KEYS.items():
        if config.get(field) is not None:
            getattr(writer, f"add_{key}")(config[field])
    rope = config["rope_parameters"]
    rope = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(32 * rope.get("partial_rotary_factor", 1.0)))
    describe_words(writer, config)
    names = gguf.get_tensor_name_map(
        next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture), config["num_hidden_layers"]
    )
    for name, tensor in tensors.items():
        array, target = laid(architecture, name, tensor), names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert target is not None, name
        if tensor.dim() == 1 or "embed" in name or "head" in name:
            writer.add_tensor(target, array)
            continue
        number = gguf.GGMLQuantizationType.Q8_0
        raw = gguf.quants.quantize(array, number)
        writer.add_tensor(target, raw, raw_dtype=number)
        kept = gguf.quants.dequantize(raw, number).reshape(tensor.shape)
        if heads := paired(architecture, name):
            kept = kept.reshape(heads, -1, 2, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
        tensors[name] = torch.from_numpy(kept.copy())
    save_file(tensors, plain / "model.safetensors")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "model.gguf", plain


@pytest.mark.parametrize(
    ("architecture", "dtype"), [("gemma2", "bfloat16"), ("gemma3", "bfloat16"), ("phi3", "float16")]
)
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


@pytest.mark.parametrize("architecture", CASES)
def test_a_file_is_its_checkpoint(architecture: str, tmp_path: Path) -> None:
    file, plain = write(tmp_path, architecture)
    ran, want = Driver(unfold(file, tmp_path / "cache"), 4), Driver(plain, 4)
    assert any(weight.stored for weight in weights_of(ran.model))
    for ours, theirs in zip(ran.generate(PROMPTS, 6), want.generate(PROMPTS, 6), strict=True):
        assert ours.tokens == theirs.tokens
        assert (ours.all_logits() - theirs.all_logits()).abs().max() < 1e-4
