"""Tiny tokenizers of the kinds that checkpoints have, trained here and written as Hugging Face folders.

`make_byte_bpe(folder)` and its siblings write `tokenizer.json` and `tokenizer_config.json` and return the folder.
Trained once per process.
"""

import json
from functools import cache
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "The quick brown fox jumps over the lazy dog. Once upon a time there was a king who had two daughters.",
    "It was the best of times, it was the worst of times; hello world, hello again, said the old man to the sea!",
    "user assistant system: what is the name of the town? The town is called Norwich, don't you know.",
    "naïve café 你好世界 привет мир 👋🎉 déjà vu",
] * 4

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
BYTE_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def make_byte_bpe(folder: Path, chat_template: str | None = CHATML) -> Path:
    """Byte-level BPE with ChatML tokens, as Qwen has it; 384 tokens."""
    config = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": chat_template}
    return _write(folder, _byte_bpe(), config)


def make_llama(folder: Path, scheme: str = "first", chat_template: str | None = None) -> Path:
    """BPE over text with byte fallback, as Llama 2 and Mistral have it; adds a bos token.

    Args:
        scheme: "first" marks the start of a text by a Metaspace pre-tokenizer, "legacy" by the normalizer Prepend.
    """
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": chat_template}
    return _write(folder, _llama(scheme), config)


def make_wordpiece(folder: Path) -> Path:
    """WordPiece, as BERT has it: lower case, spaces between words made by the decoder."""
    return _write(folder, _wordpiece(), {"unk_token": "[UNK]", "sep_token": "[SEP]", "cls_token": "[CLS]"})


def make_unigram(folder: Path) -> Path:
    """Unigram with a Metaspace decoder, as T5 has it; its vocabulary spells the special tokens from plain text."""
    return _write(folder, _unigram(), {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})


def make_suffix_bpe(folder: Path) -> Path:
    """BPE with word-end marks, whose decoder needs the next token to know whether a space follows."""
    return _write(folder, _suffix_bpe(), {"unk_token": "<unk>", "eos_token": "</s>"})


MAKERS = {
    "byte_bpe": make_byte_bpe,
    "llama": make_llama,
    "llama_legacy": lambda folder: make_llama(folder, "legacy"),
    "wordpiece": make_wordpiece,
    "unigram": make_unigram,
    "suffix_bpe": make_suffix_bpe,
}


def _write(folder: Path, tokenizer: str, config: dict[str, str | None]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer, "utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    settings |= {name: value for name, value in config.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    return folder


@cache
def _byte_bpe() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=382, special_tokens=BYTE_SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    return str(tokenizer.to_str())


@cache
def _llama(scheme: str) -> str:
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    specials = ["<unk>", "<s>", "</s>"]
    ascii_text = [text.encode("ascii", "ignore").decode() for text in CORPUS]
    trained.train_from_iterator(
        ascii_text, trainers.BpeTrainer(vocab_size=420, special_tokens=[*specials, *byte_tokens], show_progress=False)
    )
    state = json.loads(trained.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in specials]
    state["model"]["byte_fallback"] = True
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_special_tokens(["[INST]", "[/INST]"])
    if scheme == "legacy":
        tokenizer.pre_tokenizer = None
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s>:0 $A:0", pair="<s>:0 $A:0 $B:1", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return str(tokenizer.to_str())


@cache
def _wordpiece() -> str:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    specials = ["[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=220, special_tokens=specials, show_progress=False)
    )
    return str(tokenizer.to_str())


@cache
def _unigram() -> str:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=160, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([*CORPUS, "< / s > u n k"], trainer)
    return str(tokenizer.to_str())


@cache
def _suffix_bpe() -> str:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.BPEDecoder("</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=["<unk>", "</s>"], end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return str(tokenizer.to_str())
