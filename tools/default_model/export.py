"""The trained weights as a checkpoint directory: two shards with their index, the configurations, the tokenizer.

The layout is the one published checkpoints have, so that any program that reads Qwen3 checkpoints reads this one.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from default_model.conversations import CHAT_TEMPLATE
from default_model.corpus import END_OF_TEXT, SPECIAL_TOKENS, TURN_END
from default_model.network import Network, NetworkConfig

_SHARDS = 2


def export(network: Network, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the whole checkpoint in bfloat16; what another export left in the folder is overwritten."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_shards({n: p.detach().to("cpu", torch.bfloat16).contiguous() for n, p in network.named_parameters()}, folder)
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    _write_json(folder / "config.json", _model_config(network.config, ids))
    _write_json(folder / "generation_config.json", _generation_config(ids))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(network.config, ids))
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)


def _write_shards(tensors: dict[str, Tensor], folder: Path) -> None:
    """Split at the tensor where half of the bytes are passed, in the order of the network."""
    total = sum(tensor.nbytes for tensor in tensors.values())
    shards: list[dict[str, Tensor]] = [{} for _ in range(_SHARDS)]
    written = 0
    for name, tensor in tensors.items():
        shards[min(_SHARDS - 1, written * _SHARDS // total)][name] = tensor
        written += tensor.nbytes
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{_SHARDS:05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(shard, file))
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    _write_json(folder / "model.safetensors.index.json", index)


def _model_config(config: NetworkConfig, ids: dict[str, int]) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": ids[END_OF_TEXT],
        "eos_token_id": ids[TURN_END],
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.context,
        "max_window_layers": config.layers,
        "model_type": "qwen3",
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "num_key_value_heads": config.kv_heads,
        "pad_token_id": ids[END_OF_TEXT],
        "rms_norm_eps": config.norm_eps,
        "rope_scaling": None,
        "rope_theta": config.rope_theta,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": config.vocab_size,
    }


def _generation_config(ids: dict[str, int]) -> dict[str, Any]:
    return {
        "bos_token_id": ids[END_OF_TEXT],
        "do_sample": True,
        "eos_token_id": [ids[TURN_END], ids[END_OF_TEXT]],
        "pad_token_id": ids[END_OF_TEXT],
        "repetition_penalty": 1.1,  # a network this small falls into loops without it
        "temperature": 0.8,
        "top_k": 50,
        "top_p": 0.95,
    }


def _tokenizer_config(config: NetworkConfig, ids: dict[str, int]) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {str(number): {"content": token, **flags} for token, number in ids.items()},
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": TURN_END,
        "model_max_length": config.context,
        "pad_token": END_OF_TEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
