"""`ModelFacts`: what is known about a checkpoint before anything is loaded."""

from typing import Any, Literal

import msgspec

from quire.checkpoint.pooling import PoolerFacts

Implementation = Literal["auto", "quire", "transformers"]
"""Whose code computes a model."""


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Plain facts about one checkpoint folder.

    Attributes:
        name: as the user wrote it; the default for the served model name.
        path: local folder.
        config: config.json as it is (the text part of it for nested configs).
        model_type: names the file in `models/`.
        dtype: of the weights as config.json says ("float32", "bfloat16", "float16").
        context_len: longest sequence that the model was made for, in tokens.
        vocab_size: rows of the embedding.
        eos_token_ids: tokens that end a text, from generation_config.json and config.json.
        generation_config: sampling defaults of the checkpoint, as it is.
        chat_template: Jinja source, if the checkpoint has one.
        quantization: how weights are quantized, as config.json or a file beside it says; {} where nothing says so.
        pooling: what it gives instead of text; None where it generates.
    """

    name: str
    path: str
    config: dict[str, Any]
    model_type: str
    dtype: str
    context_len: int
    vocab_size: int
    eos_token_ids: list[int]
    generation_config: dict[str, Any]
    chat_template: str | None
    quantization: dict[str, Any] = {}
    pooling: PoolerFacts | None = None
