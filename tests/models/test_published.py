"""Decoders as their makers publish them: nested configs with few fields, older names, tensors of other parts."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.models.checkpoints import make
from tests.models.driver import Driver

pytestmark = pytest.mark.torch

TOKENS = [5, 9, 11, 3, 96, 17, 40, 41, 8, 7, 23, 60]
Config = dict[str, Any]
VISION = {"vision_tower.patch.weight": torch.ones(2, 2), "multi_modal_projector.weight": torch.ones(2)}
FACTORS = {"short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5], "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0]}
PATTERN = ["sliding_attention"] * 3 + ["full_attention", "sliding_attention"]


@dataclass(frozen=True, eq=False)
class Published:
    """A family, and what a published checkpoint has otherwise than transformers writes it today.

    Attributes:
        config: makes the published config.json of transformers'.
        names: makes a published name of transformers'.
        more: tensors that nobody asks for.
        made: fields of the config that transformers makes the model from.
    """

    family: str
    config: Callable[[Config], Config]
    names: Callable[[str], str] = str
    more: dict[str, Tensor] = field(default_factory=dict)
    made: Config = field(default_factory=dict)


def without(config: Config, *names: str) -> Config:
    return {name: value for name, value in config.items() if name not in names}


def old_rope(config: Config, **more: Any) -> Config:
    rope = config["rope_parameters"]
    outer = {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}
    return {**without(config, "rope_parameters", "layer_types"), **outer, "rope_scaling": None, **more}


def gemma3(config: Config) -> Config:
    """The sizes alone; the rest is Gemma 3's."""
    said = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    text = {name: config[name] for name in (*said, "head_dim", "vocab_size", "sliding_window", "query_pre_attn_scalar")}
    scaling = {"factor": 8.0, "rope_type": "linear"}
    text |= {"model_type": "gemma3_text", "max_position_embeddings": 128, "rope_scaling": scaling}
    return {"model_type": "gemma3", "eos_token_id": [1, 2], "text_config": text, "vision_config": {"hidden_size": 4}}


def under(model_type: str) -> Callable[[Config], Config]:
    return lambda config: {"model_type": model_type, "text_config": config, "vision_config": {"depth": 1}}


def refined_web(model_type: str, *names: str) -> Callable[[Config], Config]:
    """Falcon as it first came: model type and fields by the names of its own code."""
    said = {"num_attention_heads": "n_head", "num_hidden_layers": "n_layer", "num_kv_heads": "n_head_kv"}
    kept = ("vocab_size", "hidden_size", "layer_norm_epsilon", "bias", "parallel_attn", "eos_token_id", "alibi")

    def made(config: Config) -> Config:
        old = {
            said.get(name, name): config[name] for name in (*kept, "num_attention_heads", "num_hidden_layers", *names)
        }
        return {**old, "model_type": model_type, "architectures": ["RWForCausalLM"]}

    return made


def below(name: str) -> str:
    return f"language_model.{name}"


def within(name: str) -> str:
    return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name


CASES = {
    "gemma3": Published(
        "gemma3_text",
        gemma3,
        below,
        VISION,
        {
            "num_hidden_layers": 7,
            "layer_types": [*["sliding_attention"] * 5, "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "llama4": Published("llama4_text", under("llama4"), below, {"vision_model.class_embedding": torch.ones(2)}),
    "mistral3": Published("ministral3", under("mistral3"), below, VISION),
    "qwen3_5": Published(
        "qwen3_5_text",
        under("qwen3_5"),
        within,
        {"model.visual.norm": torch.ones(2), "mtp.fc.weight": torch.ones(2, 2)},
    ),
    "qwen3_next": Published(
        "qwen3_next",
        lambda config: old_rope(config, full_attention_interval=4),
        more={"mtp.norm.weight": torch.ones(2)},
        made={"num_hidden_layers": 5, "layer_types": [*["linear_attention"] * 3, "full_attention", "linear_attention"]},
    ),
    "cohere2": Published(
        "cohere2",
        lambda config: {**without(config, "layer_types"), "sliding_window_pattern": 4},
        made={"num_hidden_layers": 5, "layer_types": PATTERN},
    ),
    "phi3": Published(
        "phi3",
        lambda config: old_rope(config, rope_scaling={"type": "su", **FACTORS}, original_max_position_embeddings=32),
        made={
            "rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0, **FACTORS},
            "original_max_position_embeddings": 32,
            "max_position_embeddings": 32,
        },
    ),
    "deepseek_v3": Published(
        "deepseek_v3",
        lambda config: old_rope(config, num_nextn_predict_layers=1, topk_method="noaux_tc", scoring_func="sigmoid"),
        more={"model.layers.2.eh_proj.weight": torch.ones(2, 2)},
        made={"num_hidden_layers": 2},
    ),
    "falcon 7b": Published("falcon", refined_web("RefinedWebModel", "multi_query")),
    "falcon 40b": Published(
        "falcon",
        refined_web("RefinedWeb", "num_kv_heads"),
        made={"new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "gpt2": Published(
        "gpt2",
        lambda config: without(config, "dtype"),
        lambda name: name.removeprefix("transformer."),
        {"h.0.attn.bias": torch.ones(1, 1, 4, 4), "h.0.attn.masked_bias": torch.tensor(-1e4)},
    ),
    "gpt_neox": Published(
        "gpt_neox",
        lambda config: {**without(config, "rope_parameters"), "rotary_pct": 0.5, "rotary_emb_base": 100},
        more={"gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(4)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_published_checkpoint_loads(name: str, tmp_path: Path) -> None:
    case, path = CASES[name], tmp_path / "published"
    judge = make(case.family, tmp_path / "judge", **case.made)
    path.mkdir()
    (path / "config.json").write_text(json.dumps(case.config(json.loads((judge / "config.json").read_text()))))
    tensors = {case.names(key): value for file in judge.glob("*.safetensors") for key, value in load_file(file).items()}
    save_file(tensors | case.more, path / "model.safetensors")
    driver = Driver(path, 4, ["torch_native"])
    sequence = driver.begin(TOKENS)
    driver.step([(sequence, 7)])
    driver.step([(sequence, 5)])
    model = AutoModelForCausalLM.from_pretrained(judge, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        want = model(torch.tensor([TOKENS]), use_cache=False).logits[0]
    assert (torch.cat(sequence.logits) - want).abs().max() < 1e-4
