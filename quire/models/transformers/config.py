"""config.json as transformers wants it, and what in it cannot be served: found before any memory is taken."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import msgspec
import transformers

from quire.base.errors import CheckpointError
from quire.checkpoint.defaults import completed
from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.read import text_part, typed
from quire.checkpoint.rope import rope_facts, rope_kind
from quire.checkpoint.sentences import read_json
from quire.layers.build import Build
from quire.layers.decoder import Count, Depth

KEPT = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
"""Kinds of layers whose state is keys and values."""
OURS = ("model_type", "auto_map", "quantization_config", "compression_config")
"""Fields that the library must not act upon: classes are found and weights are quantized here."""


class Sizes(msgspec.Struct, frozen=True):
    """What every config says; a damaged number is found before memory is taken."""

    hidden_size: Count
    num_hidden_layers: Depth
    num_attention_heads: Count


def read_config(facts: ModelFacts, trust_remote_code: bool) -> Any:
    """The config as transformers wants it. Raises CheckpointError for one that cannot be served."""
    source = f"{facts.path}/config.json"
    # The library writes into what it is given.
    fields = deepcopy({key: value for key, value in facts.config.items() if key not in OURS})
    remote = "auto_map" in facts.config and facts.model_type not in transformers.CONFIG_MAPPING
    if remote and not trust_remote_code:
        raise CheckpointError(
            f"{source}: model_type {facts.model_type!r} is defined by code that came with the checkpoint; read that "
            "code, then allow it with --trust-remote-code"
        )
    if not remote and facts.model_type not in transformers.CONFIG_MAPPING:
        raise CheckpointError(
            f"{source}: model_type {facts.model_type!r} is not known to transformers {transformers.__version__}"
        )
    try:
        if remote:
            return _foreign_config(facts)
        return transformers.AutoConfig.for_model(facts.model_type, **fields)
    except Exception as error:
        raise CheckpointError(f"{source}: {error}") from error


def _foreign_config(facts: ModelFacts) -> Any:
    """The config as the checkpoint's own code reads it, with what the user overrides."""
    said = read_json(Path(facts.path) / "config.json")
    told, inner = text_part(said), said.get("text_config")
    plain = completed(told)
    changed = {name: value for name, value in facts.config.items() if name not in OURS and plain.get(name) != value}
    config = transformers.AutoConfig.from_pretrained(facts.path, trust_remote_code=True)
    text = config.get_text_config()
    unknown = sorted(changed.keys() - {*told, *dir(text), *text.attribute_map})
    if unknown:
        raise CheckpointError(f"hf_overrides: the checkpoint's own code knows no field {', '.join(unknown)}")
    # The code may keep a field under another name or in another form, so it reads what is overridden like all else.
    merged = {"text_config": {**inner, **changed}} if isinstance(inner, dict) else changed
    return type(config).from_dict({**said, **merged}, name_or_path=config.name_or_path)


def check_config(facts: ModelFacts, b: Build, config: Any) -> None:
    """Raise CheckpointError for what cannot be served."""
    text, problem = config.get_text_config(), None
    sizes = {name: getattr(text, name) for name in Sizes.__struct_fields__}
    typed(sizes, Sizes, f"{facts.path}/config.json")
    kinds = set(text.to_dict().get("layer_types") or ()) - KEPT
    longest = b.max_model_len or facts.context_len
    if "norm_offset" in facts.config:
        problem = "norms of GGUF files of Gemma would be 1 too large: take --model-impl quire"
    elif "woven_heads" in facts.config:
        problem = "heads of GGUF files of Falcon would be read in another order: take --model-impl quire"
    elif facts.quantization.get("turned"):
        problem = "matrices of this GGUF file would be read the other way round: take --model-impl quire"
    elif text.to_dict().get("attention_type") == "block_sparse":
        problem = "a short text would turn sparse attention into full one for all that follow: override attention_type"
    elif kinds:
        problem = f"layers of the kinds {', '.join(sorted(kinds))} keep state that pages do not hold"
    elif (begins := _switches_at(facts)) is not None and longest > begins:
        problem = f"rope would turn with the longest text of a batch: set max_model_len to {begins} at most"
    if problem is not None:
        raise CheckpointError(f"{facts.path}: {facts.model_type} runs through transformers, where {problem}")


def _switches_at(facts: ModelFacts) -> int | None:
    """Beyond how many tokens the rotary embedding changes for all tokens of a text; None where it never does."""
    if rope_kind(facts.config) not in ("dynamic", "longrope"):
        return None
    rope = rope_facts(facts.config)
    return rope.original_context or rope.max_positions
