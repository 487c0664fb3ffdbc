"""GGUF files, written by the package `gguf`: every type to the bit, and one file that starts a whole engine."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer as HfTokenizer
from torch import Tensor

import quire
from benchmarks.lib.gguf_files import describe, renamed
from quire.base.errors import CheckpointError
from quire.checkpoint.gguf import BLOCKS, read_gguf
from quire.checkpoint.gguf_folder import unfold
from quire.checkpoint.gguf_tokenizer import ends, tokenizer_files
from quire.checkpoint.names import resolve
from quire.checkpoint.read import read_facts
from quire.checkpoint.rope import rope_facts
from quire.quantization.blocks import SPLITS, values
from quire.quantization.scaled import Scaled
from quire.quantization.words import Words
from quire.tokenizer.tokenizer import Tokenizer
from tests.marks import needs_native
from tests.models.checkpoints import make
from tests.models.driver import Driver
from tests.quantization.checkpoints import PROMPTS, SIZES, check, compare, stored_bytes, taken

gguf = pytest.importorskip("gguf")
pytestmark = pytest.mark.torch
BIG = {**SIZES, "hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "num_hidden_layers": 1}
# Where a block keeps its numbers of 16 bits.
HALVES = {"Q2_K": (80, 84), "Q3_K": (108, 110), "Q4_K": (0, 4), "Q5_K": (0, 4), "Q6_K": (208, 210)}


def blocks_of(kind: str, weight: np.ndarray) -> np.ndarray:
    """A matrix in blocks: by the package where it has the way there, else any bytes with small scales."""
    number = gguf.GGMLQuantizationType[kind]
    if kind not in HALVES:
        return gguf.quants.quantize(weight, number)
    per, each = gguf.GGML_QUANT_SIZES[number]
    raw = np.random.default_rng(len(weight)).integers(0, 256, (weight.size // per, each), dtype=np.uint8)
    first, last = HALVES[kind]
    scale = {"Q2_K": 8e-3, "Q3_K": 1e-3, "Q4_K": 2e-4, "Q5_K": 1e-4, "Q6_K": 5e-5}[kind]
    numbers = np.random.default_rng(1).uniform(0.5, 1, (len(raw), (last - first) // 2)) * scale
    raw[:, first:last] = numbers.astype(np.float16).view(np.uint8)
    return raw.reshape(len(weight), -1)


@pytest.mark.parametrize("kind", sorted(SPLITS))
def test_blocks_are_ggmls_to_the_bit(kind: str) -> None:
    number = gguf.GGMLQuantizationType[kind]
    per, each = gguf.GGML_QUANT_SIZES[number]
    assert (kind, per, each) in BLOCKS.values()
    raw = blocks_of(kind, np.random.default_rng(3).normal(size=(7, 256)).astype(np.float32))
    want = gguf.quants.dequantize(raw, number)
    found = values(kind, torch.from_numpy(raw.reshape(-1, each).copy())).view(7, 256)
    assert np.array_equal(found.numpy(), want)


@pytest.mark.parametrize("kind", sorted(SPLITS))
def test_values_of_blocks_need_nothing_of_the_host(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight that stays in blocks is read in recorded steps, too, which copy nothing but pinned memory."""
    raw = torch.zeros(3, gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1], dtype=torch.uint8)
    want = values(kind, raw)  # makes what is made once
    monkeypatch.setattr(torch, "tensor", None)
    assert torch.equal(values(kind, raw), want)


Kinds = dict[str, str] | None


def write(
    folder: Path,
    kind: str,
    family: str = "llama",
    ends: bool = False,
    split: int = 0,
    others: Kinds = None,
    **sizes: Any,
) -> tuple[Path, Path, dict[str, Tensor]]:
    """A file, the same values in full precision, and the values of its matrices; `ends` quantizes the vocabulary's.

    With `split`, no file has more tensors than that, and there are several. `others` are types of single matrices.
    """
    plain = make(family, folder / "plain", **{**BIG, **sizes})
    tensors = taken(plain)
    config = json.loads((plain / "config.json").read_text())
    writer = gguf.GGUFWriter(folder / "model.gguf", family, split_max_tensors=split)
    describe(writer, config)
    writer.add_rope_freq_base(10000.0)
    describe_words(writer, config)
    values: dict[str, Tensor] = {}
    for name, tensor in list(tensors.items()):
        module = name.removesuffix(".weight")
        heads = {"q_proj": 4, "k_proj": 2}.get(module.rsplit(".", 1)[-1]) if family == "llama" else None
        array = turned(tensor.numpy(), heads)
        if not module.endswith("_proj") and not (ends and module in ("model.embed_tokens", "lm_head")):
            writer.add_tensor(renamed(name), array)
            continue
        own = (others or {}).get(module.rsplit(".", 1)[-1], kind)
        number = gguf.GGMLQuantizationType[own]
        raw = blocks_of(own, array)
        writer.add_tensor(renamed(name), raw, raw_dtype=number)
        back = torch.from_numpy(gguf.quants.dequantize(raw, number).reshape(tensor.shape).copy())
        if heads:
            back = back.view(heads, -1, 2, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
        tensors[name] = values[module] = back.contiguous()
    save_file(tensors, plain / "model.safetensors")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "model.gguf", plain, values


def turned(array: np.ndarray, heads: int | None) -> np.ndarray:
    """Rows as llama.cpp's converter orders those of queries and keys (`permute` of convert_hf_to_gguf.py)."""
    if heads is None:
        return array
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))


def describe_words(writer: Any, config: dict[str, Any]) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list([f"w{i}" for i in range(config["vocab_size"])])
    writer.add_token_merges([])
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages }}")


@pytest.mark.parametrize(
    "kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "F16"]
)
def test_every_type(kind: str, tmp_path: Path) -> None:
    file, plain, values = write(tmp_path, kind)
    # Rows of 256 are one block of the larger types, of which two ranks have a half each.
    check(unfold(file, tmp_path / "cache"), plain, values)


@needs_native
@pytest.mark.parametrize("others", [{"v_proj": "Q6_K", "up_proj": "F16"}, {"q_proj": "F16", "k_proj": "F32"}], ids=repr)
def test_unlike_parts_of_a_matrix_are_one_call_of_a_layer(others: dict[str, str], tmp_path: Path) -> None:
    """As in llama.cpp's q4_k_m, whose values are of more bits than queries and keys."""
    file, plain, values = write(tmp_path, "Q4_K", "llama", others=others)
    ran, want = Driver(unfold(file, tmp_path / "cache"), 4, ["cpu"]), Driver(plain, 4)
    assert compare(ran, values)
    assert ran.build.provider_names()["pre_norm_layer"] == "cpu"
    for ours, theirs in zip(ran.generate(PROMPTS, 1), want.generate(PROMPTS, 1), strict=True):
        assert (ours.all_logits() - theirs.all_logits()).abs().max() < 0.05 * theirs.all_logits().abs().max()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
def test_embeddings_and_heads(kind: str, tied: bool, tmp_path: Path) -> None:
    file, plain, values = write(tmp_path, kind, ends=True, tie_word_embeddings=tied)
    assert "model.embed_tokens" in values and ("lm_head" in values) is not tied
    check(unfold(file, tmp_path / "cache"), plain, values)


def test_what_becomes_larger_as_kernels_read_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def as_words(weight: Scaled, _: object) -> Words | None:
        return Words.like(weight) if Words.holds(weight) else None

    monkeypatch.setattr("quire.loading.quantized.arranged", as_words)
    file, _, values = write(tmp_path, "Q6_K")
    driver = Driver(unfold(file, tmp_path / "cache"), 4)
    assert compare(driver, values) and driver.build.checkpoint is not None
    read, held = driver.build.checkpoint.unfolded
    assert read == sum(weight.numel() for weight in values.values()) // 256 * 210
    assert held == stored_bytes(driver) == pytest.approx(read * 10 / 6.5625, rel=1e-3)
    [note] = driver.build.checkpoint.notes()
    assert note.startswith("ggml's blocks of 0.00 GiB became codes with scales")


def test_a_family_whose_heads_lie_as_elsewhere(tmp_path: Path) -> None:
    file, plain, values = write(tmp_path, "Q8_0", "qwen3")
    check(unfold(file, tmp_path / "cache"), plain, values)


def test_one_file_is_enough_to_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    file, plain, _ = write(tmp_path, "Q8_0")
    found = []
    for model in (file, plain):
        options = {"device": "cpu", "kv_cache_memory_bytes": 1 << 22, "log_level": "warning", "kernels": "reference"}
        with quire.LLM(str(model), dtype="float32", **options) as llm:
            params = quire.SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
            [output] = llm.generate([{"prompt_token_ids": [5, 9, 11]}], params, use_tqdm=False)
            found.append(list(output.outputs[0].token_ids))
    assert found[0] == found[1]
    settings = json.loads((resolve(str(file)) / "tokenizer_config.json").read_text())
    assert settings == {"eos_token": "w2", "chat_template": "{{ messages }}"}


def test_the_tokenizer_is_the_models(tmp_path: Path) -> None:
    """The shipped model's tokenizer through a file and back."""
    folder = resolve("default")
    whole = json.loads((folder / "tokenizer.json").read_text())
    vocab = {**whole["model"]["vocab"], **{token["content"]: token["id"] for token in whole["added_tokens"]}}
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    describe(writer, {"head_dim": 64, **json.loads((folder / "config.json").read_text())})
    writer.add_tokenizer_model("gpt2")
    special = {token["content"] for token in whole["added_tokens"]}
    names = sorted(vocab, key=vocab.__getitem__)
    writer.add_token_list(names)
    writer.add_token_types([3 if name in special else 1 for name in names])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in whole["model"]["merges"]])
    writer.add_tokenizer_pre("qwen2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    made = Tokenizer.load(unfold(tmp_path / "model.gguf", tmp_path / "cache"))
    want = Tokenizer.load(folder)
    for text in ("Once upon a time, there were 1234 mice.", "  two  spaces\n\nand lines", "été 😀"):
        ids = want.encode(text, add_special_tokens=False)
        assert made.encode(text, add_special_tokens=False) == ids
        assert made.decode(ids) == want.decode(ids)


def test_sentencepiece(tmp_path: Path) -> None:
    pieces = {"<unk>": (0, 2), "<s>": (0, 3), "</s>": (0, 3), "<0xC3>": (0, 6), "<0xA9>": (0, 6), "▁": (-9, 1)}
    pieces |= {"a": (-8, 1), "b": (-8, 1), "ab": (-2, 1), "▁a": (-3, 1), "▁ab": (-4, 1)}
    data = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": list(pieces),
        "tokenizer.ggml.scores": [float(score) for score, _ in pieces.values()],
        "tokenizer.ggml.token_type": [kind for _, kind in pieces.values()],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    for name, content in tokenizer_files(tmp_path, data).items():
        (tmp_path / name).write_text(json.dumps(content))
    made = Tokenizer.load(tmp_path)
    # "ab" has the best score, so it is merged before a blank joins its first letter; é falls back to its bytes.
    assert made.encode("ab baé") == [1, 10, 5, 7, 6, 3, 4]
    assert made.decode([10, 5, 7, 6, 3, 4]) == "ab baé"


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("gpt-2", "It's 12", "It 's Ġ12"),
        ("smollm", "It's 12", "It 's Ġ 1 2"),
        ("llama-bpe", "IT'S 1234", "IT 'S Ġ 123 4"),
        ("deepseek-r1-qwen", "IT'S 12", "IT 'S Ġ 1 2"),
        ("tekken", "aNewWord 12", "a New Word Ġ 1 2"),
        ("gpt-4o", "Let's 1234", "Let's Ġ 123 4"),
        ("falcon", "a+= 12345", "a += Ġ 123 45"),
    ],
)
def test_how_texts_are_cut_first(pre: str, text: str, pieces: str, tmp_path: Path) -> None:
    data = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": ["a"]}
    made = HfTokenizer.from_str(json.dumps(tokenizer_files(tmp_path, data)["tokenizer.json"]))
    assert [piece for piece, _ in made.pre_tokenizer.pre_tokenize_str(text)] == pieces.split()


@pytest.mark.parametrize(("more", "begins"), [({}, [1]), ({"tokenizer.ggml.add_bos_token": False}, [])])
def test_tokens_that_begin_and_end_texts(more: dict[str, Any], begins: list[int], tmp_path: Path) -> None:
    """Llama 3's files need not say that texts begin with a token, and name one of three that end them."""
    tokens = ["a", "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|end|>"]
    data = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.tokens": tokens, **more}
    data |= {"tokenizer.ggml.token_type": [1, 3, 3, 3, 1], "tokenizer.ggml.bos_token_id": 1}
    data |= {"tokenizer.ggml.eos_token_id": 3}
    for name, content in tokenizer_files(tmp_path, data).items():
        (tmp_path / name).write_text(json.dumps(content))
    assert Tokenizer.load(tmp_path).encode("a") == [*begins, 0]
    assert ends(data) == [3, 2], "a text of a user's that looks like one is none"


def test_stretched_frequencies(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    config = {**BIG, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "vocab_size": 8}
    describe(writer, config)
    writer.add_rope_freq_base(10000.0)
    describe_words(writer, config)
    writer.add_tensor("rope_freqs.weight", np.full(32, 4.0, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    facts = read_facts("x", unfold(tmp_path / "model.gguf", tmp_path / "cache"))
    rope = rope_facts(facts.config)
    assert rope.kind == "longrope" and rope.short_factor == rope.long_factor == (4.0,) * 32
    assert rope.attention_factor == 1.0 and facts.context_len == 64


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    file, _, _ = write(tmp_path, "Q8_0")
    whole = file.read_bytes()
    for content, says in ((b"nothing", "no GGUF file"), (whole[:200], "damaged"), (whole[:-4096], "does not fit")):
        broken = tmp_path / "broken.gguf"
        broken.write_bytes(content)
        with pytest.raises(CheckpointError, match=says):
            read_gguf(broken)
