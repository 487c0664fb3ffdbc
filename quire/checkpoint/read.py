"""config.json and its companions, read into `ModelFacts`.

Owns the spelling of a checkpoint's metadata: nested text configs, old and new names of a field, where the chat template
and the end-of-sequence tokens lie. Knows no tensor. Read once; everyone is handed the facts.
"""

import json
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from quire.base.errors import CheckpointError
from quire.checkpoint.defaults import completed
from quire.checkpoint.facts import ModelFacts
from quire.checkpoint.pooling import PoolerFacts, Runner, is_encoder, pooler_facts, position_offset
from quire.checkpoint.rope import KINDS, is_per_layer, one_spelling, rope_facts, rope_kind, unscaled
from quire.checkpoint.sentences import Method

Config = TypeVar("Config", bound=msgspec.Struct)
DTYPES = ("float32", "bfloat16", "float16")
MAX_CONTEXT = 1 << 30
PARTS = ("text_config", "vision_config", "audio_config")
"""Configs within that of a model that takes more than texts."""

OTHER_KINDS = {
    "adapter_config.json": "it holds an adapter: merge that into its model (PEFT: merge_and_unload), name the result",
    "*.gguf": "give the .gguf file itself",
    "params.json": "it is in the makers' own format: give the Hugging Face one",
    "model_index.json": "it holds a pipeline of diffusers, which is no language model",
    "snapshots/*/config.json": "give the hub's name of the model, or the folder below snapshots/",
}
"""What a folder without config.json may be, by a file in it, and what helps."""


class _Core(msgspec.Struct, frozen=True):
    """The fields of config.json that every decoder must have."""

    model_type: str
    vocab_size: int
    max_position_embeddings: int


def read_facts(
    name: str,
    path: str | Path,
    runner: Runner = "auto",
    pooling: Method | None = None,
    overrides: dict[str, Any] | None = None,
) -> ModelFacts:
    """The facts of the checkpoint in folder `path`, which the user called `name`.

    `runner` says whether it is to generate or to pool, `pooling` how; unset, the checkpoint does. `overrides` replace
    fields of config.json. Raises CheckpointError naming the file and field that is missing, unreadable or of the wrong
    type.
    """
    folder = Path(path)
    config = completed(_settled(_read_json(folder / "config.json"), overrides or {}))
    generation = _read_json(folder / "generation_config.json", required=False)
    core = typed(config, _Core, str(folder / "config.json"))
    for field, value in (("vocab_size", core.vocab_size), ("max_position_embeddings", core.max_position_embeddings)):
        if not 0 < value <= MAX_CONTEXT:
            raise CheckpointError(
                f"{folder / 'config.json'}: {field} is {value}; it must be between 1 and {MAX_CONTEXT}"
            )
    pooler = pooler_facts(folder, config, runner, pooling)
    return ModelFacts(
        name=name,
        path=str(folder),
        config=config,
        model_type=core.model_type,
        dtype=_dtype(config, folder),
        context_len=_context_len(config, core.max_position_embeddings, pooler),
        vocab_size=core.vocab_size,
        eos_token_ids=_eos_token_ids(folder, generation, config),
        generation_config=generation,
        chat_template=chat_template(folder),
        quantization=_quantization(folder, config),
        pooling=pooler,
    )


def typed(config: dict[str, Any], kind: type[Config], source: str) -> Config:
    """`config` as the struct `kind`; fields that `kind` does not name are ignored.

    Raises CheckpointError naming `source` and the field that is missing or has the wrong type or an absurd value.
    """
    try:
        return msgspec.convert(config, kind)
    except msgspec.ValidationError as error:
        why = "the checkpoint's configuration is damaged or of another kind"
        if str(error).startswith("Invalid enum value"):
            why = "quire's own model of this type does not compute that; --model-impl transformers may"
        raise CheckpointError(f"{source}: {error}; {why}") from None


def _settled(config: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """The language model's config, in one spelling: with `overrides`, whichever level has what they name."""
    inner = {key: value for key, value in overrides.items() if key in PARTS}
    rest = {key: value for key, value in overrides.items() if key not in PARTS}
    found = text_part(overridden(config, inner))
    if "rope_scaling" in rest and rest["rope_scaling"] is None:
        found = unscaled(found)
    return one_spelling(overridden(found, rest))


def overridden(config: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """`config` with `values` in it, objects merged. Raises CheckpointError where a value is of another type."""
    made = dict(config)
    for key, value in values.items():
        old = config.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            made[key] = overridden(old, value)
            continue
        if None not in (old, value) and _type(old) is not _type(value):
            raise CheckpointError(f"hf_overrides: {key} is {value!r}, config.json has {old!r}; give one like it")
        made[key] = value
    return made


def _type(value: object) -> type:
    return float if isinstance(value, int) and not isinstance(value, bool) else type(value)


def text_part(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of a nested config; what it leaves out comes from the outer level."""
    inner = config.get("text_config")
    if not isinstance(inner, dict):
        return config
    outer = {key: value for key, value in config.items() if key not in PARTS}
    return {**outer, **inner}


def _read_json(file: Path, required: bool = True) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not required:
            return {}
        remedies = (remedy for mark, remedy in OTHER_KINDS.items() if any(file.parent.glob(mark)))
        remedy = next(remedies, "give a folder in Hugging Face format, or a .gguf file")
        raise CheckpointError(f"{file.parent} has no {file.name}; {remedy}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}; download it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} must hold a JSON object, not {type(content).__name__}")
    return content


def _dtype(config: dict[str, Any], folder: Path) -> str:
    # transformers 5 writes `dtype`, earlier releases `torch_dtype`; where both are missing weights are float32.
    value = config.get("dtype") or config.get("torch_dtype") or "float32"
    name = str(value).removeprefix("torch.")
    if name not in DTYPES:
        raise CheckpointError(f"{folder / 'config.json'}: dtype is {value!r}; known: {', '.join(DTYPES)}")
    return name


def _context_len(config: dict[str, Any], positions: int, pooler: PoolerFacts | None) -> int:
    made_for = _positions(config, positions)
    return made_for if pooler is None or pooler.max_tokens is None else min(made_for, pooler.max_tokens)


def _positions(config: dict[str, Any], positions: int) -> int:
    """Tokens that the model was made for. Some ways to stretch rope leave max_position_embeddings unstretched.

    Dynamic rope is stretched only where a user asks for more: up to max_position_embeddings it is plain rope.
    """
    if is_encoder(config):
        offset = position_offset(config)
        if offset >= positions:
            raise CheckpointError(
                f"config.json: max_position_embeddings is {positions}, of which pad_token_id takes {offset}"
            )
        return positions - offset
    if rope_kind(config) not in KINDS:
        # Whoever runs the model may understand it, or refuses it.
        return positions
    rope = rope_facts(config)
    if rope.kind == "linear" and not is_per_layer(config):
        return int(positions * rope.factor)
    if rope.kind == "yarn":
        return max(positions, int((rope.original_context or positions) * rope.factor))
    return positions


def _eos_token_ids(folder: Path, *sources: dict[str, Any]) -> list[int]:
    found: list[int] = []
    for source in sources:
        value = source.get("eos_token_id")
        ids = [] if value is None else value if isinstance(value, list) else [value]
        for token in ids:
            if not isinstance(token, int) or isinstance(token, bool):
                raise CheckpointError(f"{folder}: eos_token_id is {value!r}; it must be a token id or a list of them")
            if token not in found:
                found.append(token)
    return found


def _quantization(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """What is said of quantized weights: in config.json under either name, or in ModelOpt's or AutoGPTQ's own file."""
    said = config.get("quantization_config") or config.get("compression_config")
    if isinstance(said, dict):
        return said
    own = _read_json(folder / "hf_quant_config.json", required=False)
    inner = own.get("quantization")
    if isinstance(inner, dict):
        return {"quant_method": "modelopt", **inner}
    own = _read_json(folder / "quantize_config.json", required=False)
    return {"quant_method": "gptq", **own} if own else {}


def chat_template(folder: Path) -> str | None:
    """The source of the template for plain chat that lies in `folder`, if there is one."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    # The second is where processors of images and text once kept it.
    for name in ("tokenizer_config.json", "chat_template.json"):
        source = _read_json(folder / name, required=False).get("chat_template")
        if isinstance(source, list):
            # Several named templates: the one for plain chat is called "default".
            named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
            source = named.get("default")
        if isinstance(source, str):
            return source
    return None
