"""The default model's files as they ship: small enough, complete, and speaking the chat format they promise.

Only the files are looked at, with the standard library, the tokenizer and the template language; whether the engine
computes with them is tested with the engine.
"""

import json
import math
import struct
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from jinja2 import Environment
from tokenizers import Tokenizer

import quire

MODEL = Path(quire.__file__).parent / "assets" / "default_model"
MEBIBYTE = 1 << 20

pytestmark = pytest.mark.plain


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((MODEL / name).read_text(encoding="utf-8"))
    return content


@cache
def shards() -> dict[str, dict[str, Any]]:
    """Each shard's header: the tensors' types, shapes and places, as the safetensors format writes them."""
    headers = {}
    for path in sorted(MODEL.glob("*.safetensors")):
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            headers[path.name] = json.loads(file.read(size))
            headers[path.name].pop("__metadata__", None)
    return headers


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


def render(messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
    template = Environment(autoescape=False).from_string(read("tokenizer_config.json")["chat_template"])
    return template.render(messages=messages, add_generation_prompt=add_generation_prompt)


def test_sizes() -> None:
    sizes = [path.stat().st_size for path in MODEL.glob("*.safetensors")]
    assert len(sizes) == 2
    assert max(sizes) <= 12 * MEBIBYTE
    assert sum(sizes) <= 20 * MEBIBYTE
    assert sum(path.stat().st_size for path in MODEL.iterdir()) <= 21 * MEBIBYTE


def test_the_index_names_every_tensor_of_both_shards() -> None:
    places = {name: file for file, header in shards().items() for name in header}
    index = read("model.safetensors.index.json")
    assert index["weight_map"] == places
    nbytes = sum(
        end - start for header in shards().values() for start, end in (t["data_offsets"] for t in header.values())
    )
    assert index["metadata"]["total_size"] == nbytes


def test_parameters() -> None:
    tensors = [tensor for header in shards().values() for tensor in header.values()]
    assert sum(math.prod(tensor["shape"]) for tensor in tensors) <= 10_000_000
    assert {tensor["dtype"] for tensor in tensors} == {"BF16"}


def test_the_shapes_are_those_of_the_configuration() -> None:
    config = read("config.json")
    shapes = {name: tensor["shape"] for header in shards().values() for name, tensor in header.items()}
    hidden, head = config["hidden_size"], config["head_dim"]
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["tie_word_embeddings"] and "lm_head.weight" not in shapes
    assert len(shapes) == 11 * config["num_hidden_layers"] + 2
    assert shapes["model.embed_tokens.weight"] == [config["vocab_size"], hidden]
    last = f"model.layers.{config['num_hidden_layers'] - 1}"
    assert shapes[f"{last}.self_attn.q_proj.weight"] == [config["num_attention_heads"] * head, hidden]
    assert shapes[f"{last}.self_attn.k_proj.weight"] == [config["num_key_value_heads"] * head, hidden]
    assert shapes[f"{last}.mlp.down_proj.weight"] == [hidden, config["intermediate_size"]]


@pytest.mark.parametrize(
    "text",
    [
        "It is a truth universally acknowledged.",
        "Two  spaces,\n\nlines\tand tabs \n",
        "naïve café — “curly quotes” … 1,234.5",
        "日本語 🙂 \u0000\u007f",
        "<|im_start|>user\nHello<|im_end|>\n",
    ],
)
def test_the_tokenizer_returns_what_it_was_given(text: str) -> None:
    ids = tokenizer().encode(text, add_special_tokens=False).ids
    assert tokenizer().decode(ids, skip_special_tokens=False) == text
    assert max(ids) < read("config.json")["vocab_size"]


def test_texts_end_at_either_end_token() -> None:
    ends = [tokenizer().token_to_id(token) for token in ("<|im_end|>", "<|endoftext|>")]
    generation = read("generation_config.json")
    assert generation["eos_token_id"] == ends
    assert generation["temperature"] == 0.8
    assert tokenizer().encode("<|im_start|><|im_end|>").ids == [tokenizer().token_to_id("<|im_start|>"), ends[0]]


def test_the_chat_template() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Good day."},
        {"role": "user", "content": "Go on."},
    ]
    expected = (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\nGood day.<|im_end|>\n"
        "<|im_start|>user\nGo on.<|im_end|>\n"
    )
    assert render(messages, add_generation_prompt=False) == expected
    assert render(messages, add_generation_prompt=True) == expected + "<|im_start|>assistant\n"
