"""The models of the GPU table: shapes of public checkpoints, as folders with random weights.

Owns the config.json of each and what is counted from it (parameters, bytes of state per token). Knows no engine: a
folder holds a config and a small tokenizer, and is loaded with `load_format=dummy`.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, islice, product
from itertools import count as count_from
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel as AllBytes
from tokenizers.pre_tokenizers import WhitespaceSplit

COMMON: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
QWEN3: dict[str, Any] = {
    "head_dim": 128,
    "vocab_size": 151936,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 40960,
    "rope_scaling": None,
    "use_sliding_window": False,
    "sliding_window": None,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}
MODELS: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": COMMON
    | QWEN3
    | {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "intermediate_size": 3072,
        "max_window_layers": 28,
        "tie_word_embeddings": True,
    },
    "llama-8b": COMMON
    | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "pretraining_tp": 1,
        "rope_scaling": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
    },
    "qwen3-30b-a3b": COMMON
    | QWEN3
    | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "router_aux_loss_coef": 0.001,
        "output_router_logits": False,
        "max_window_layers": 48,
        "tie_word_embeddings": False,
    },
}


@dataclass(frozen=True, slots=True)
class Counts:
    """What a shape costs. Parameters are numbers of entries.

    Attributes:
        layers: of the model; the other figures are per layer unless said otherwise.
        attention, mlp: parameters that every token uses (for experts: the router).
        expert, experts, chosen: parameters of one expert, how many there are, how many a token uses; 0 without.
        head: parameters of the output head, of the whole model.
        query_width, state_width: entries of a token's queries, and of its keys and values together.
    """

    layers: int
    attention: int
    mlp: int
    expert: int
    experts: int
    chosen: int
    head: int
    query_width: int
    state_width: int


def count(config: dict[str, Any]) -> Counts:
    """The counts of a config.json."""
    hidden = int(config["hidden_size"])
    heads, kv_heads = int(config["num_attention_heads"]), int(config["num_key_value_heads"])
    head_dim = int(config.get("head_dim") or hidden // heads)
    experts = int(config.get("num_experts", 0))
    inner = int(config["intermediate_size"])
    return Counts(
        layers=int(config["num_hidden_layers"]),
        attention=hidden * (2 * heads + 2 * kv_heads) * head_dim,
        mlp=hidden * experts if experts else 3 * hidden * inner,
        expert=3 * hidden * int(config.get("moe_intermediate_size", 0)),
        experts=experts,
        chosen=int(config.get("num_experts_per_tok", 0)),
        head=hidden * int(config["vocab_size"]),
        query_width=heads * head_dim,
        state_width=2 * kv_heads * head_dim,
    )


def write_words(folder: Path, size: int) -> None:
    """Put a tokenizer into `folder` in which each of `size` ids is a word, so that every token is text."""
    _write_tokens(folder, (f"Ġw{number}" for number in range(size)))


def write_letters(folder: Path, size: int) -> None:
    """Put a tokenizer into `folder` whose ids are bytes, then strings of letters: enough for any text and grammar."""
    words = ("".join(letters) for length in count_from(2) for letters in product(ascii_lowercase, repeat=length))
    _write_tokens(folder, islice(chain(sorted(AllBytes.alphabet()), words), size))


def _write_tokens(folder: Path, tokens: Iterable[str]) -> None:
    tokenizer = Tokenizer(BPE({token: number for number, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = AllBytes(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}', encoding="utf-8")


def write(name: str, parent: Path) -> Path:
    """A folder under `parent` with the config of model `name` and a tokenizer of one word; no weights."""
    folder = parent / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(MODELS[name], indent=2), encoding="utf-8")
    tokenizer = Tokenizer(WordLevel({"<unk>": 0, "word": 1}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"unk_token": "<unk>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    return folder
