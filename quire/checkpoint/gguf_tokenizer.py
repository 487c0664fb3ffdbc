"""The tokenizer in a GGUF file, written as tokenizer.json and tokenizer_config.json.

Two kinds: byte-level BPE with merges ("gpt2"), split as one of a few families does, and SentencePiece's BPE ("llama"),
whose merges follow from the scores. Called by `gguf_folder.py` only.
"""

from pathlib import Path
from typing import Any

from quire.base.errors import CheckpointError

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_LARGE, _SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_WORDS = (rf"[^\r\n\p{{L}}\p{{N}}]?{_LARGE}*{_SMALL}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_LARGE}+{_SMALL}*")
_OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = "|".join((*_WORDS, r"\p{N}", _OTHERS))
GPT4O = "|".join((*(f"{word}(?i:'s|'t|'re|'ve|'m|'ll|'d)?" for word in _WORDS), r"\p{N}{1,3}", _OTHERS))
DIGIT, DIGITS, MARKS = r"\p{N}", "[0-9][0-9][0-9]", r"[\p{P}\$\+<=>\^~\|`]+"
SPLITS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("default", "gpt-2", "phi-2", "olmo", "mpt", "jais"), (GPT2,)),
    **dict.fromkeys(("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone"), (DIGIT, GPT2)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "dbrx", "smaug-bpe"), (LLAMA3,)),
    **dict.fromkeys(("chatglm-bpe", "glm4"), (LLAMA3,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez"), (QWEN2,)),
    **dict.fromkeys(("gpt-4o", "llama4"), (GPT4O,)),
    "tekken": (TEKKEN,),
    "falcon": (MARKS, GPT2, DIGITS),
}
"""`tokenizer.ggml.pre` to the expressions that cut texts, one after the other, as the tokenizers do that it names."""
WHOLE = ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "tekken")
"""Those that keep a piece that is a token, and put the first token before texts unless the file says otherwise."""
ENDS = (
    "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>",
)  # fmt: skip
"""Texts of tokens that end an answer, whatever the metadata calls them."""
NORMAL, CONTROL, USER = 1, 3, 4


def tokenizer_files(file: Path, data: dict[str, Any]) -> dict[str, Any]:
    """Contents of the files by name. Raises CheckpointError for a kind of tokenizer that is not known."""
    kind, tokens = data.get("tokenizer.ggml.model"), data.get("tokenizer.ggml.tokens") or []
    types = data.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    added = [
        {
            "id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": types[i] == CONTROL,
        }
        for i, token in enumerate(tokens)
        if types[i] in (CONTROL, USER)
    ]  # fmt: skip
    if kind == "gpt2":
        parts = _byte_level(file, data, tokens)
    elif kind == "llama":
        parts = _sentencepiece(data, tokens)
    else:
        raise CheckpointError(f"{file}: tokenizer {kind!r} is not supported; name one with --tokenizer")
    bos = _token(data, tokens, "bos")
    begins = kind == "llama" or data.get("tokenizer.ggml.pre") in WHOLE
    put = bool(data.get("tokenizer.ggml.add_bos_token", begins)) and bos is not None
    whole = {"version": "1.0", "added_tokens": added, "post_processor": _processor(data, bos if put else None), **parts}
    config: dict[str, Any] = {f"{name}_token": _token(data, tokens, name) for name in ("bos", "eos")}
    config["chat_template"] = data.get("tokenizer.chat_template")
    return {
        "tokenizer.json": whole,
        "tokenizer_config.json": {key: value for key, value in config.items() if value is not None},
    }


def ends(data: dict[str, Any]) -> list[int]:
    """Ids of tokens that end an answer: a text, a turn, a message; first the one that the file names."""
    tokens, types = data.get("tokenizer.ggml.tokens") or [], data.get("tokenizer.ggml.token_type") or []
    named = [data.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    known = [i for i, (token, kind) in enumerate(zip(tokens, types, strict=False)) if kind == CONTROL and token in ENDS]
    return list(dict.fromkeys([number for number in named if isinstance(number, int)] + known))


def _token(data: dict[str, Any], tokens: list[str], name: str) -> str | None:
    number = data.get(f"tokenizer.ggml.{name}_token_id")
    return tokens[number] if isinstance(number, int) and number < len(tokens) else None


def _processor(data: dict[str, Any], bos: str | None) -> dict[str, Any] | None:
    """What is put around a text: the token that begins one, if any."""
    if bos is None:
        return None
    sequence: list[dict[str, Any]] = [{"Sequence": {"id": "A", "type_id": 0}}]
    begin = {"SpecialToken": {"id": bos, "type_id": 0}}
    number = data["tokenizer.ggml.bos_token_id"]
    return {
        "type": "TemplateProcessing",
        "single": [begin, *sequence],
        "pair": [begin, *sequence, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {bos: {"id": bos, "ids": [number], "tokens": [bos]}},
    }


def _byte_level(file: Path, data: dict[str, Any], tokens: list[str]) -> dict[str, Any]:
    name = str(data.get("tokenizer.ggml.pre", "default"))
    if name not in SPLITS:
        raise CheckpointError(f"{file}: texts are cut as {name!r} does, which is not known; name one with --tokenizer")
    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    cuts = [
        {"type": "Split", "pattern": {"Regex": cut}, "behavior": "Isolated", "invert": False} for cut in SPLITS[name]
    ]
    return {
        "normalizer": {"type": "NFC"} if name == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*cuts, last]},
        "decoder": last,
        "model": _bpe(tokens, data.get("tokenizer.ggml.merges") or [], ignore_merges=name in WHOLE),
    }


def _sentencepiece(data: dict[str, Any], tokens: list[str]) -> dict[str, Any]:
    scores, known = data.get("tokenizer.ggml.scores") or [0.0] * len(tokens), {t: i for i, t in enumerate(tokens)}
    merges = []
    for token, score in zip(tokens, scores, strict=True):
        pairs = [(token[:i], token[i:]) for i in range(1, len(token))]
        found = [pair for pair in pairs if pair[0] in known and pair[1] in known]
        merges += [(score, f"{a} {b}") for a, b in sorted(found, key=lambda pair: (known[pair[0]], known[pair[1]]))]
    merges.sort(key=lambda entry: -entry[0])
    prefix = bool(data.get("tokenizer.ggml.add_space_prefix", True))
    unknown = _token(data, tokens, "unknown")
    blank = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    first = [{"type": "Prepend", "prepend": "▁"}] if prefix else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*first, blank]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": {
            **_bpe(tokens, [m for _, m in merges]),
            "byte_fallback": True,
            "fuse_unk": True,
            "unk_token": unknown,
        },
    }


def _bpe(tokens: list[str], merges: list[str], ignore_merges: bool = False) -> dict[str, Any]:
    return {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": ignore_merges,
        "vocab": {token: i for i, token in enumerate(tokens)}, "merges": merges,
    }  # fmt: skip
