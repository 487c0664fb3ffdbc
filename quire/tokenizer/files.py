"""The tokenizer files of a checkpoint folder, read once, with errors that name the file and the remedy.

Called by `Tokenizer.load`. Knows `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`, and what
transformers adds to the first from the other two.
"""

import json
from pathlib import Path
from typing import Any

import tokenizers

from quire.base.errors import CheckpointError

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The special tokens that have a role of their own; chat templates read them by these names."""


def read_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """`tokenizer.json` without truncation and padding, which would be state shared by threads."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing: quire reads fast tokenizers only; write one with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...) of transformers, or name a folder with --tokenizer"
        )
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"{path} is damaged ({error}); download it again") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def read_settings(folder: Path) -> dict[str, Any]:
    """`tokenizer_config.json` over `special_tokens_map.json`; both may be missing."""
    return {**_read_object(folder / "special_tokens_map.json"), **_read_object(folder / "tokenizer_config.json")}


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); download it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(value).__name__}; download it again")
    return value


def named_tokens(settings: dict[str, Any]) -> dict[str, str]:
    """The text of each special token that the settings name."""
    found = {}
    for name in NAMED:
        value = settings.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            found[name] = value
    return found


def apply_settings(tokenizer: tokenizers.Tokenizer, settings: dict[str, Any], folder: Path) -> None:
    """Add the tokens that only the settings know.

    `add_bos_token` and `add_eos_token` are not read: since version 5 of transformers the post-processor in
    tokenizer.json alone says what is put around a text.
    """
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for token_id, token in _declared(settings, folder):
        if token.content not in known:
            tokenizer.add_tokens([token])
            known.add(token.content)
            _check_id(tokenizer, token.content, token_id, folder)
    named = named_tokens(settings)
    tokenizer.add_special_tokens([text for text in named.values() if text not in known])


def _declared(settings: dict[str, Any], folder: Path) -> list[tuple[int, tokenizers.AddedToken]]:
    declared = settings.get("added_tokens_decoder") or {}
    path = folder / "tokenizer_config.json"
    try:
        return sorted(((int(i), _added(entry)) for i, entry in declared.items()), key=lambda pair: pair[0])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: added_tokens_decoder is damaged ({error}); download it again") from None


def _added(entry: dict[str, Any]) -> tokenizers.AddedToken:
    flags = {name: bool(entry.get(name, False)) for name in ("single_word", "lstrip", "rstrip", "special")}
    return tokenizers.AddedToken(entry["content"], normalized=bool(entry.get("normalized", True)), **flags)


def _check_id(tokenizer: tokenizers.Tokenizer, text: str, token_id: int, folder: Path) -> None:
    actual = tokenizer.token_to_id(text)
    if actual != token_id:
        raise CheckpointError(
            f"{folder / 'tokenizer_config.json'}: added token {text!r} has id {token_id}, but tokenizer.json makes it "
            f"{actual}; the two files are not of one model, download both again"
        )
